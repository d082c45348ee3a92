"""Contrast-and-sample as one operator of torch whose inputs all live on the device, so that a graph can capture it.

The uniforms are computed there too, from the keys of the random streams and the rows' counters: bit for bit those of
`eddecode.sampling.rng`. On a CPU, where tests record steps on a tape, the same operator runs the CPU's implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eddecode.sampling import reference, rng
from eddecode.sampling.device_penalties import DevicePenalties
from eddecode_kernels import layers_triton, sample_triton
from eddecode_kernels.types import Filters, RawSample, SampleInputs, SamplingRows

FORBIDDEN = 32  # ids that rows have room for where some row must avoid any
MAX_FORBIDDEN = 4096  # the most, in powers of two: each is a step of its own


@dataclass
class DeviceRows:
    """What is known of the rows of a step, on the device.

    Attributes:
        active: (B,) int64, 1 for rows that decode and 0 for those that fill up.
        counter: (B,) int64, position of the next token in its completion.
        keys: (B, 2) int64, 32-bit words: keys of the random streams.
        weights: (N, B) float32, of the models in the contrast.
        rows: temperature and filters.
        forbidden_ids, forbidden_until: (B, F) int64, ids that must not be sampled while the counter is
            below; −1 is none.
    """

    active: Tensor
    counter: Tensor
    keys: Tensor
    weights: Tensor
    rows: SamplingRows
    forbidden_ids: Tensor
    forbidden_until: Tensor

    @classmethod
    def vacant(cls, models: int, batch: int, device: torch.device, forbidden: int = FORBIDDEN) -> DeviceRows:
        """Rows that only fill up: greedy, from the first model. forbidden: ids that there is room for."""

        def longs(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        def floats(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float32, device=device)

        rows = SamplingRows(floats(batch), longs(batch), floats(batch) + 1, floats(batch), floats(batch))
        weights = floats(models, batch)
        weights[0] = 1.0
        none = longs(batch, forbidden)
        return cls(longs(batch), longs(batch), longs(batch, 2), weights, rows, none - 1, none.clone())

    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        own = [self.active, self.counter, self.keys, self.weights, self.forbidden_ids, self.forbidden_until]
        return [*own, *vars(self.rows).values()]


def sample_on_device(
    logits: Sequence[Tensor],
    rows: DeviceRows,
    vocabulary: Tensor,
    filters: Filters,
    forbids: bool,
    penalties: DevicePenalties | None = None,
    mask: Tensor | None = None,
) -> RawSample:
    """Sample one token per row without the host; `status` is not checked.

    Args:
        logits: per model (B, V_i) float32.
        rows: the rows.
        vocabulary: (V,) bool.
        filters: which some row uses.
        forbids: whether some row has forbidden ids.
        penalties: of the rows, if some have any.
        mask: (B, V) float32, −inf where a row must not sample an id that others may, else 0; None masks none.
    """
    terms = [] if mask is None else [mask]
    if penalties is not None:
        terms.append(penalties.term(logits, rows.weights))
    if terms:  # of the contrast, with weight 1
        weights = torch.cat([rows.weights, rows.weights.new_ones(len(terms), rows.weights.shape[1])])
        rows = replace(rows, weights=weights)
        raw = sample_on_device([*logits, *terms], rows, vocabulary, filters, forbids)
        return replace(raw, logprobs=torch.cat([raw.logprobs[: len(logits)], raw.logprobs[-1:]]))
    batch, device = rows.active.shape[0], logits[0].device
    raw = RawSample(
        torch.empty(batch, dtype=torch.int64, device=device),
        torch.empty(len(logits) + 1, batch, dtype=torch.float32, device=device),
        torch.empty(batch, dtype=torch.int32, device=device),
    )
    torch.ops.eddecode.sample_rows(
        list(logits), rows.tensors(), vocabulary, filters.top_k, filters.top_p, filters.plausibility, forbids,
        raw.tokens, raw.logprobs, raw.status,
    )  # fmt: skip
    return raw


_library: Any = torch.library.Library("eddecode", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "sample_rows(Tensor[] logits, Tensor[] rows, Tensor vocabulary, bool top_k, bool top_p, bool plausibility, "
    "bool forbids, Tensor(a!) tokens, Tensor(b!) logprobs, Tensor(c!) status) -> ()"
)


def _sample_rows(
    logits: list[Tensor],
    rows: list[Tensor],
    vocabulary: Tensor,
    top_k: bool,
    top_p: bool,
    plausibility: bool,
    forbids: bool,
    tokens: Tensor,
    logprobs: Tensor,
    status: Tensor,
) -> None:
    _, counter, keys, weights, ids, until, *parameters = rows
    on_gpu = logits[0].device.type == "cuda"
    uniforms = torch.empty(counter.shape[0], dtype=torch.float64, device=counter.device)
    if on_gpu or layers_triton.available(counter.device, torch.float32):
        torch.ops.eddecode.philox_uniforms(keys, counter, uniforms)
    else:
        uniforms.copy_(_uniforms_on_host(keys, counter))
    forbidden = []
    if forbids and not on_gpu:
        live = (ids >= 0) & (counter[:, None] < until)
        forbidden = [(row, tuple(ids[row][live[row]].tolist())) for row in range(len(ids))]
    inputs = SampleInputs(
        tuple(logits),
        weights,
        SamplingRows(*parameters),
        uniforms,
        vocabulary,
        forbidden,
        vocabulary.shape[0],
    )
    if on_gpu:
        masked = sample_triton.ForbiddenIds(ids, until, counter) if forbids else None
        written = RawSample(tokens, logprobs, status)
        sample_triton.launch(inputs, masked, Filters(top_k, top_p, plausibility), written)
        return
    raw = reference.contrast_and_sample(inputs)
    for target, value in ((tokens, raw.tokens), (logprobs, raw.logprobs), (status, raw.status)):
        target.copy_(value)


def _uniforms_on_host(keys: Tensor, counter: Tensor) -> Tensor:
    streams = keys.numpy().astype(np.uint64)
    return torch.tensor(
        [float(rng.uniforms(key, int(at), 1)[0]) for key, at in zip(streams, counter.tolist(), strict=True)],
        dtype=torch.float64,
    )


_library.impl("sample_rows", _sample_rows, "CompositeExplicitAutograd")
