"""The reference implementation of contrast-and-sample in plain torch, for any device.

It composes the functions that define the contrast and the filters, with float64 temporaries of (B, V). The compiled
implementations must return the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eddecode.sampling.contrast import contrast
from eddecode.sampling.filters import sample
from eddecode_kernels.types import (
    NO_CANDIDATES,
    NON_FINITE_CONTRAST,
    NON_FINITE_LOGITS,
    RawSample,
    SampleInputs,
)


def contrast_and_sample(inputs: SampleInputs) -> RawSample:
    """Sample one token per row; see `eddecode.sampling.dispatch.contrast_and_sample`."""
    rows = inputs.rows
    contrasted = _contrast(inputs)  # (B, V)
    top = contrasted.amax(dim=-1)  # NaN if there is one
    status = torch.zeros_like(top, dtype=torch.int32)
    for i, (z, weight) in enumerate(zip(inputs.logits, inputs.weights, strict=True)):
        peak = z.amax(dim=-1)
        bad = peak.isnan() | ((peak == torch.inf) & (weight != 0))
        status = torch.where(bad & (status == 0), NON_FINITE_LOGITS + i, status)
    problem = torch.where(top == -torch.inf, NO_CANDIDATES, NON_FINITE_CONTRAST)
    status = torch.where((status == 0) & ~top.isfinite(), problem, status)

    # Rows with an error must not stop the others here.
    safe = contrasted.masked_fill((status != 0)[:, None], 0.0)
    tokens = sample(safe, rows.temperature, rows.top_k, rows.top_p, rows.min_p, inputs.uniforms)
    logprobs = [_logprob(z, tokens) for z in inputs.logits] + [_logprob(safe, tokens)]
    return RawSample(tokens, torch.stack(logprobs), status.int())


def _contrast(inputs: SampleInputs) -> Tensor:
    tau = inputs.rows.plausibility
    contrasted = contrast(inputs.logits, inputs.weights, inputs.vocabulary, tau)
    ids: dict[int, list[int]] = {}
    for row, forbidden in inputs.forbidden:
        ids.setdefault(row, []).extend(forbidden)
    for row, forbidden in ids.items():  # contrasted again: plausibility is relative to what may be sampled
        allowed = torch.ones(inputs.width, dtype=torch.bool, device=contrasted.device)
        if inputs.vocabulary is not None:
            allowed &= inputs.vocabulary
        allowed[[i for i in forbidden if 0 <= i < inputs.width]] = False
        one = slice(row, row + 1)
        contrasted[one] = contrast([z[one] for z in inputs.logits], inputs.weights[:, one], allowed, tau[one])
    return contrasted


def _logprob(z: Tensor, tokens: Tensor) -> Tensor:
    """(B,) log-probability of `tokens` under the softmax of (B, V) logits."""
    chosen = z.gather(-1, tokens[:, None])[:, 0].double()
    logprob = chosen - z.double().logsumexp(dim=-1)
    return torch.where(chosen == -torch.inf, -torch.inf, logprob).float()
