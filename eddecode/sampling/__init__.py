"""The ED distribution: contrast, access limits, filters, counter-based randomness, and sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.sampling.filters import keep_min_p, keep_top_k, keep_top_p, sample
    from eddecode.sampling.params import SamplingParams
    from eddecode.sampling.rng import philox4x32, stream_key, uniforms

_HOMES = {
    "SamplingParams": "eddecode.sampling.params",
    "keep_min_p": "eddecode.sampling.filters",
    "keep_top_k": "eddecode.sampling.filters",
    "keep_top_p": "eddecode.sampling.filters",
    "philox4x32": "eddecode.sampling.rng",
    "sample": "eddecode.sampling.filters",
    "stream_key": "eddecode.sampling.rng",
    "uniforms": "eddecode.sampling.rng",
}

__all__ = [
    "SamplingParams",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "philox4x32",
    "sample",
    "stream_key",
    "uniforms",
]

__getattr__ = lazy_exports(__name__, _HOMES)
