"""Contrast-and-sample: check the arguments, choose an implementation, raise for rows that cannot be sampled."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from eddecode.errors import EngineError
from eddecode.sampling import reference
from eddecode_kernels import sample_cpu as cpu
from eddecode_kernels import sample_triton as gpu
from eddecode_kernels.types import (
    EVERY_FILTER,
    NO_CANDIDATES,
    NON_FINITE_LOGITS,
    OUT_OF_MEMORY,
    Filters,
    Forbidden,
    RawSample,
    SampledTokens,
    SampleInputs,
    SamplingRows,
    UnavailableError,
)

Backend = Literal["auto", "reference", "cpu", "triton"]

_log = logging.getLogger(__name__)


def contrast_and_sample(
    logits: Sequence[Tensor],
    weights: Tensor,
    rows: SamplingRows,
    uniforms: Tensor,
    vocabulary: Tensor | None = None,
    forbidden: Forbidden | None = None,
    backend: Backend = "auto",
    filters: Filters = EVERY_FILTER,
) -> SampledTokens:
    """Contrast the logits, filter, sample one token per row, and compute its log-probabilities.

    The contrast is `eddecode.sampling.contrast`, filters and sampling are `eddecode.sampling.sample`; this is both in
    one pass. The result of a row depends on nothing but that row.

    Args:
        logits: N tensors (B, V_i) float32, the first one the base model's; V_i may be wider than V. The last
            dimension must be contiguous.
        weights: (N, B) float32; a term of weight zero has no effect, even at ±inf.
        rows: the sampling parameters of each row.
        uniforms: (B,) float64 in [0, 1), one per row.
        vocabulary: (V,) bool, true where an id may be sampled; None allows all ids below the smallest V_i.
        forbidden: pairs (row, ids): more ids that this row must not sample. They are masked before everything else,
            so that plausibility and probabilities are relative to what may be sampled.
        backend: which implementation; `auto` reads the environment variable EDDECODE_KERNELS, and else takes
            `triton` for tensors on a CUDA device and `cpu` for the rest, or `reference` where these are unavailable.
        filters: which of them some row uses; it spares a GPU the others, and changes no result.

    Returns:
        `SampledTokens` on the CPU: tokens (B,) int64 and logprobs (N+1, B) float32. This copy is the only
        synchronization with a CUDA device.

    Raises:
        EngineError: shapes or dtypes do not fit together; the logits of a row are NaN, or +inf in a term of nonzero
            weight; a row has no token left to sample; a forced backend is not available.
    """
    width = min((z.shape[-1] for z in logits), default=0) if vocabulary is None else vocabulary.shape[0]
    inputs = SampleInputs(tuple(logits), weights, rows, uniforms, vocabulary, forbidden or (), width, filters)
    _check(inputs)
    return checked(on_host(_run(inputs, backend)), width)


def _run(inputs: SampleInputs, backend: Backend) -> RawSample:
    """Run the forced implementation, or the fastest one that is available."""
    if backend == "auto":
        backend = cast(Backend, os.environ.get("EDDECODE_KERNELS") or "auto")
    if backend not in get_args(Backend):
        raise EngineError(
            f"the kernel backend {backend!r} is unknown; expected one of {', '.join(get_args(Backend))}"
        )
    device = inputs.logits[0].device.type
    chosen = {"cpu": "cpu", "cuda": "triton"}.get(device, "reference") if backend == "auto" else backend
    try:
        if chosen == "cpu":
            if device != "cpu":
                raise UnavailableError(f"it reads CPU memory and the logits are on {device}")
            return cpu.contrast_and_sample(inputs)
        if chosen == "triton":
            return gpu.contrast_and_sample(inputs)
    except UnavailableError as error:
        if backend != "auto":
            raise EngineError(f"the kernel backend {chosen!r} is not available: {error}") from error
        _warn_once(str(error))
    return reference.contrast_and_sample(inputs)


@cache
def _warn_once(reason: str) -> None:
    """Warn, once per reason, that the slow implementation is used."""
    _log.warning("contrast-and-sample runs as plain torch, several times slower: %s", reason)


def _check(inputs: SampleInputs) -> None:
    if not inputs.logits:
        raise EngineError("contrast_and_sample was given no logits; expected one (B, V) tensor per model")
    batch = inputs.logits[0].shape[0]
    for i, z in enumerate(inputs.logits):
        if z.dim() != 2 or z.shape[0] != batch or z.dtype != torch.float32:
            raise EngineError(
                f"logits of term {i} are {tuple(z.shape)} {z.dtype}; expected ({batch}, V) torch.float32: "
                "lift them to float32 before the contrast"
            )
        if z.shape[1] < inputs.width:
            raise EngineError(
                f"the vocabulary has {inputs.width} ids but term {i} has only {z.shape[1]} logits; "
                "cut the vocabulary to the ids that every model knows"
            )
    if inputs.weights.shape != (len(inputs.logits), batch):
        raise EngineError(
            f"weights are {tuple(inputs.weights.shape)}; expected (terms, rows) = ({len(inputs.logits)}, {batch})"
        )
    if inputs.uniforms.shape != (batch,) or inputs.uniforms.dtype != torch.float64:
        raise EngineError(
            f"uniforms are {tuple(inputs.uniforms.shape)} {inputs.uniforms.dtype}; "
            f"expected ({batch},) torch.float64, one per row"
        )

    for name, value in vars(inputs.rows).items():
        if value.shape != (batch,):
            raise EngineError(f"{name} is {tuple(value.shape)}; expected ({batch},), one entry per row")
    for row, _ in inputs.forbidden:
        if not 0 <= row < batch:
            raise EngineError(
                f"forbidden has the row {row}, and there are {batch} rows; expected 0 to {batch - 1}"
            )


def on_host(raw: RawSample) -> RawSample:
    """The result on the CPU. From a CUDA device it is copied as one tensor: each copy waits for the device."""
    device = raw.status.device.type
    if device == "cuda":
        return unpacked(packed(raw).cpu())
    if device == "cpu":
        return raw
    return RawSample(raw.tokens.cpu(), raw.logprobs.cpu(), raw.status.cpu())


def packed(raw: RawSample) -> Tensor:
    """(B, N+3) float64: tokens, status and log-probabilities, all exactly representable in it."""
    numbers = raw.logprobs.new_empty(len(raw.tokens), 2 + len(raw.logprobs), dtype=torch.float64)
    numbers[:, 0], numbers[:, 1], numbers[:, 2:] = raw.tokens, raw.status, raw.logprobs.T
    return numbers


def unpacked(numbers: Tensor) -> RawSample:
    """The result that was packed."""
    return RawSample(numbers[:, 0].long(), numbers[:, 2:].T.float(), numbers[:, 1].int())


def checked(raw: RawSample, width: int) -> SampledTokens:
    """The draw, or an error that names the first row that has none.

    Args:
        raw: on the CPU.
        width: of the vocabulary.
    """
    if not raw.status.any():
        return SampledTokens(raw.tokens, raw.logprobs)
    row = int(raw.status.ne(0).int().argmax())
    status = int(raw.status[row])
    if status == NO_CANDIDATES:
        raise EngineError(
            "no token is left to sample; every id is outside the vocabulary, forbidden, or −inf in one of the models. "
            "Check the vocabulary mask and the suppressed ids",
            row=row,
        )
    if status == OUT_OF_MEMORY:
        raise EngineError(f"no memory for the buffers of one row of {width} logits", row=row)
    if status >= NON_FINITE_LOGITS:
        raise EngineError(
            "the logits of {model} contain NaN or +inf; expected finite logits. Load the model in bfloat16 or float32 "
            "(float16 overflows in many models), or check its weights",
            row=row,
            model=status - NON_FINITE_LOGITS,
        )
    raise EngineError(
        "the contrasted logits are not finite at an id that may be sampled; expected finite logits. Check both models' "
        "logits, and |alpha|, for an overflow",
        row=row,
    )
