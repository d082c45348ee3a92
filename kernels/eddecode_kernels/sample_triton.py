"""Contrast and sample in Triton, for CUDA; tests run it on a CPU in Triton's slow interpreter (TRITON_INTERPRET=1).

A row is split over several programs, in every kernel. One launch per model adds its logits to the contrast and stores
partial softmax sums; the filters search their thresholds; then the token is picked, and one launch per model computes
its log-probability. Nothing here waits for the device, and the launches depend on shapes and on which filters are in
use, so that they can be captured in a CUDA graph. The caller checks `status`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eddecode_kernels.launching import LaunchError, compile_ahead, launch_kernel, launches, on_device_of
from eddecode_kernels.types import (
    EVERY_FILTER,
    Filters,
    Forbidden,
    RawSample,
    SampleInputs,
    SamplingRows,
    UnavailableError,
)

BLOCK = 2048
CUTS = 16


@dataclass(frozen=True)
class ForbiddenIds:
    """Ids that rows must not sample, on the device.

    Attributes:
        ids: (B, n) int64; −1 is none.
        until: (B, n) int64; an id is forbidden as long as the row's counter is below.
        counter: (B,) int64, the position of the token in its completion.
    """

    ids: Tensor
    until: Tensor
    counter: Tensor


def contrast_and_sample(inputs: SampleInputs) -> RawSample:
    """Sample one token per row; see `eddecode.sampling.dispatch.contrast_and_sample`.

    Raises:
        UnavailableError: triton is not installed, the logits are not on a CUDA device, or a kernel cannot be compiled.
    """
    try:
        from eddecode_kernels import triton_kernels as kernels
    except ImportError as error:
        raise UnavailableError(f"triton cannot be imported ({error}); pip install triton") from error
    device = inputs.logits[0].device
    if device.type != "cuda" and not kernels.INTERPRETED:
        raise UnavailableError(f"the logits are on {device}, and Triton runs on CUDA devices")
    try:
        return launch(inputs, filters=inputs.filters)
    except LaunchError as error:
        raise UnavailableError(str(error)) from error


@launches
def launch(
    inputs: SampleInputs,
    forbidden: ForbiddenIds | None = None,
    filters: Filters = EVERY_FILTER,
    raw: RawSample | None = None,
) -> RawSample:
    """Enqueue the kernels and return at once; `status` is not checked.

    Args:
        inputs: of the call.
        forbidden: more ids that must not be sampled.
        filters: which some row may use; kernels of the others are not launched.
        raw: what is written and returned; None makes it.
    """
    with on_device_of(inputs.logits):  # `launches` sees tensors among the arguments only
        device = inputs.logits[0].device
        kind = (
            *(device, inputs.width, filters, None if forbidden is None else forbidden.ids.shape[1]),
            *(
                (z.shape[1], z.dtype, z.stride(0)) for z in inputs.logits
            ),  # not the rows: all have the same kernels
        )
        if kind not in _compiled:
            _compiled.add(kind)
            compile_ahead(device, lambda: _enqueue(inputs, forbidden, filters, raw))
        return _enqueue(inputs, forbidden, filters, raw)


_compiled: set[Any] = set()  # kinds of calls whose kernels have been compiled


def _enqueue(
    inputs: SampleInputs, forbidden: ForbiddenIds | None, filters: Filters, raw: RawSample | None
) -> RawSample:
    logits = [z if z.stride(1) == 1 or z.shape[1] == 1 else z.contiguous() for z in inputs.logits]
    device, batch, width = logits[0].device, logits[0].shape[0], inputs.width
    call = _Call(batch, width, device)
    weights = inputs.weights.to(device, torch.float32).contiguous()
    vocabulary = None if inputs.vocabulary is None else inputs.vocabulary.to(device).view(torch.uint8)
    parts = [call.add_term(i, z, weights[i], vocabulary) for i, z in enumerate(logits)]
    if inputs.forbidden:
        _forbid(call.contrast, inputs.forbidden)
    if forbidden is not None:
        call.forbid(forbidden)
    if raw is None:
        raw = RawSample(
            torch.empty(batch, dtype=torch.int64, device=device),
            torch.empty(len(logits) + 1, batch, dtype=torch.float32, device=device),
            torch.empty(batch, dtype=torch.int32, device=device),
        )
    call.sample(_on(inputs.rows, device), logits[0], inputs.uniforms.to(device), filters, raw)
    for i, z in reversed(list(enumerate(logits))):
        call.token_logprob(i, z, weights[i], parts[i], raw)
    return raw


def _on(rows: SamplingRows, device: torch.device) -> SamplingRows:
    floats = {
        n: getattr(rows, n).to(device, torch.float32)
        for n in ("temperature", "top_p", "min_p", "plausibility")
    }
    return SamplingRows(top_k=rows.top_k.to(device, torch.int64), **floats)


class _Call:
    """The buffers of one call, and its launches in order."""

    def __init__(self, batch: int, width: int, device: torch.device) -> None:
        from eddecode_kernels import triton_kernels as kernels

        self.kernels, self.batch, self.width, self.device = kernels, batch, width, device
        self.blocks = -(-width // BLOCK)
        self.lanes = max(16, 1 << (self.blocks - 1).bit_length())
        self.grid = (batch, self.blocks)
        self.contrast = self._empty(batch, width)
        self.tops, self.nans, self.peaks = (self._empty(batch, self.blocks) for _ in range(3))
        self.sums, self.masses, self.before = (
            self._empty(batch, self.blocks, float64=True) for _ in range(3)
        )
        self.least = self._empty(batch)

    def _empty(self, *shape: int, float64: bool = False) -> Tensor:
        return torch.empty(*shape, dtype=torch.float64 if float64 else torch.float32, device=self.device)

    def add_term(
        self, index: int, z: Tensor, weight: Tensor, vocabulary: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Add one model's term; returns its partial softmax sums. No fused multiply-adds: the reference's bits."""
        blocks = -(-z.shape[1] // BLOCK)
        tops, sums = self._empty(self.batch, blocks), self._empty(self.batch, blocks, float64=True)
        launch_kernel(self.kernels.add_term, (self.batch, blocks),
            z, z.stride(0), z.shape[1], weight, self.contrast, self.width, vocabulary, tops, sums, blocks,
            FIRST=index == 0, MASKED=vocabulary is not None, BLOCK=BLOCK, enable_fp_fusion=False,
        )  # fmt: skip
        return tops, sums

    def forbid(self, forbidden: ForbiddenIds) -> None:
        """Mask ids."""
        count = forbidden.ids.shape[1]
        block = max(16, 1 << (count - 1).bit_length())
        launch_kernel(self.kernels.forbid, (self.batch,),
            self.contrast, self.width, forbidden.ids, forbidden.until, forbidden.counter,
            IDS=count, BLOCK=block, num_warps=1 if block <= 256 else 4,
        )  # fmt: skip

    def sample(
        self, rows: SamplingRows, base: Tensor, uniforms: Tensor, filters: Filters, raw: RawSample
    ) -> None:
        """Filter and pick a token for each row."""
        kernels, width, blocks = self.kernels, self.width, self.blocks
        log_tau = rows.plausibility.log()
        shape = {"PARTS": self.lanes, "BLOCK": BLOCK}
        if filters.plausibility:
            launch_kernel(
                kernels.plausible_peak,
                self.grid,
                self.contrast,
                base,
                base.stride(0),
                width,
                log_tau,
                self.peaks,
                blocks,
                BLOCK=BLOCK,
            )
        launch_kernel(kernels.contrast_part, self.grid,
            self.contrast, base, base.stride(0), width, log_tau, self.peaks, self.tops, self.sums, self.nans, blocks,
            PLAUSIBLE=filters.plausibility, **shape,
        )  # fmt: skip
        k_search = p_search = (self.least, self.least)  # not read
        if filters.top_k:
            self.least.fill_(-torch.inf)
            k_search = self._search(rows, rows.top_k, unit=True)
        if filters.top_p:
            self._kept_mass(rows, self.before, k_search, p_search, filters.top_k, False, last=False)
            p_search = self._search(rows, rows.top_p, unit=False)
        self._kept_mass(rows, self.masses, k_search, p_search, filters.top_k, filters.top_p, last=True)
        launch_kernel(kernels.pick, (self.batch,),
            self.contrast, width, self.tops, self.sums, self.nans, rows.temperature, uniforms, self.least, self.masses,
            blocks, raw.tokens, raw.logprobs[-1], raw.status, **shape, num_warps=8,
        )  # fmt: skip

    def _search(self, rows: SamplingRows, values: Tensor, *, unit: bool) -> tuple[Tensor, Tensor]:
        """The last bounds and weights of a search for a threshold."""
        bounds = [torch.empty(self.batch, 2, dtype=torch.int64, device=self.device) for _ in range(2)]
        weights = [self._empty(self.batch, self.blocks, CUTS, float64=True) for _ in range(2)]
        for i in range(self.kernels.SWEEPS):
            old, new = (i + 1) % 2, i % 2
            launch_kernel(self.kernels.sweep, self.grid,
                self.contrast, self.width, self.tops, rows.temperature, values, self.before, self.least,
                bounds[old], weights[old], bounds[new], weights[new], self.blocks, int(i == 0),
                UNIT=unit, BLOCK=BLOCK, CUTS=CUTS, PARTS=self.lanes, num_warps=8,
            )  # fmt: skip
        last = (self.kernels.SWEEPS - 1) % 2
        return bounds[last], weights[last]

    def _kept_mass(
        self, rows: SamplingRows, masses: Tensor, k_search: tuple[Tensor, Tensor], p_search: tuple[Tensor, Tensor],
        top_k: bool, top_p: bool, *, last: bool,
    ) -> None:  # fmt: skip
        launch_kernel(self.kernels.kept_mass, self.grid,
            self.contrast, self.width, self.tops, rows.temperature, rows.top_k, rows.top_p, rows.min_p, self.before,
            *k_search, *p_search, self.least, masses, self.blocks,
            TOP_K=top_k, TOP_P=top_p, LAST=last, BLOCK=BLOCK, CUTS=CUTS, PARTS=self.lanes,
        )  # fmt: skip

    def token_logprob(
        self, index: int, z: Tensor, weight: Tensor, parts: tuple[Tensor, Tensor], raw: RawSample
    ) -> None:
        """The log-probability of the sampled tokens under one model's own softmax."""
        blocks = parts[0].shape[1]
        launch_kernel(self.kernels.token_logprob, (self.batch,),
            z, z.stride(0), blocks, weight, *parts, blocks, raw.tokens, raw.logprobs[index], raw.status, index,
            PARTS=max(16, 1 << (blocks - 1).bit_length()),
        )  # fmt: skip


def _forbid(contrasted: Tensor, forbidden: Forbidden) -> None:
    pairs = [(row, int(i)) for row, ids in forbidden for i in ids if 0 <= i < contrasted.shape[1]]
    if pairs:
        index = torch.tensor(pairs, device=contrasted.device).T
        contrasted[index[0], index[1]] = -torch.inf
