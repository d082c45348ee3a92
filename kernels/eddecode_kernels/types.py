"""Inputs and outputs of the sampling kernels, shared by all implementations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Forbidden: TypeAlias = Sequence[tuple[int, Sequence[int]]]

# Status of a row: 0 is fine; NON_FINITE_LOGITS + i: the logits of term i are NaN or +inf.
NO_CANDIDATES, NON_FINITE_CONTRAST, OUT_OF_MEMORY, NON_FINITE_LOGITS = 1, 2, 3, 4


class UnavailableError(RuntimeError):
    """An implementation is not available on this machine; the message says why."""


@dataclass(frozen=True)
class SamplingRows:
    """The sampling parameters of a batch, one entry per row, all on the device of the logits or on the CPU.

    Attributes:
        temperature: (B,) float32; 0 is greedy.
        top_k: (B,) int64; 0 is off.
        top_p: (B,) float32; 1 is off.
        min_p: (B,) float32; 0 is off.
        plausibility: (B,) float32, τ; 0 is off.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    plausibility: Tensor


@dataclass(frozen=True)
class Filters:
    """Which filters some row of a batch may use."""

    top_k: bool = True
    top_p: bool = True
    plausibility: bool = True


EVERY_FILTER = Filters()


@dataclass(frozen=True)
class SampledTokens:
    """One token per row, on the CPU.

    Attributes:
        tokens: (B,) int64, the sampled ids.
        logprobs: (N+1, B) float32, nats: log-probability of the token under the full softmax of each of the N
            models, then under the contrast (the softmax of the masked contrast, before temperature and filters).
    """

    tokens: Tensor
    logprobs: Tensor


@dataclass(frozen=True)
class SampleInputs:
    """The arguments of one call, checked. See `eddecode.sampling.dispatch.contrast_and_sample` for shapes.

    Attributes:
        width: V, the number of ids over which the contrast goes.
        filters: which some row may use.
    """

    logits: tuple[Tensor, ...]
    weights: Tensor
    rows: SamplingRows
    uniforms: Tensor
    vocabulary: Tensor | None
    forbidden: Forbidden
    width: int
    filters: Filters = EVERY_FILTER


@dataclass(frozen=True)
class RawSample:
    """Sampled tokens before the check of `status`, (B,) int32: 0, or why the row has no token. On any device."""

    tokens: Tensor
    logprobs: Tensor
    status: Tensor
