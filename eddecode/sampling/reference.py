"""The reference: contrast and sample in plain torch, on any device, by the functions that define them.

It makes float64 temporaries of (B, V) and is in no hurry. What it returns is what the compiled versions must return.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eddecode_kernels.types import BAD_TERM, NOT_FINITE, NOTHING_LEFT, Outcome, Problem


def contrast_and_sample(problem: Problem) -> Outcome:
    """Draw one token per row; see `eddecode_kernels.contrast_and_sample`."""
    from eddecode.sampling.filters import sample

    rows = problem.rows
    contrasted = _contrast(problem)  # (B, V)
    top = contrasted.amax(dim=-1)  # NaN if there is one
    status = torch.zeros_like(top, dtype=torch.int32)
    for i, (z, weight) in enumerate(zip(problem.logits, problem.weights, strict=True)):
        peak = z.amax(dim=-1)
        bad = peak.isnan() | ((peak == torch.inf) & (weight != 0))
        status = torch.where(bad & (status == 0), BAD_TERM + i, status)
    left = torch.where(top == -torch.inf, NOTHING_LEFT, NOT_FINITE)
    status = torch.where((status == 0) & ~top.isfinite(), left, status)

    safe = contrasted.masked_fill(
        (status != 0)[:, None], 0.0
    )  # rows that will raise must not stop the others
    tokens = sample(safe, rows.temperature, rows.top_k, rows.top_p, rows.min_p, problem.uniforms)
    logprobs = [_logprob(z, tokens) for z in problem.logits] + [_logprob(safe, tokens)]
    return Outcome(tokens, torch.stack(logprobs), status.int())


def _contrast(problem: Problem) -> Tensor:
    from eddecode.sampling.contrast import contrast

    tau = problem.rows.plausibility
    contrasted = contrast(problem.logits, problem.weights, problem.vocabulary, tau)
    ids: dict[int, list[int]] = {}
    for row, more in problem.forbidden:
        ids.setdefault(row, []).extend(more)
    for row, gone in ids.items():  # a vocabulary of its own: plausibility is relative to what may be sampled
        allowed = torch.ones(problem.width, dtype=torch.bool, device=contrasted.device)
        if problem.vocabulary is not None:
            allowed &= problem.vocabulary
        allowed[[i for i in gone if 0 <= i < problem.width]] = False
        one = slice(row, row + 1)
        contrasted[one] = contrast(
            [z[one] for z in problem.logits], problem.weights[:, one], allowed, tau[one]
        )
    return contrasted


def _logprob(z: Tensor, tokens: Tensor) -> Tensor:
    """(B,) log-probability of `tokens` under the softmax of (B, V) logits."""
    chosen = z.gather(-1, tokens[:, None])[:, 0].double()
    logprob = chosen - z.double().logsumexp(dim=-1)
    return torch.where(chosen == -torch.inf, -torch.inf, logprob).float()
