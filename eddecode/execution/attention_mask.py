"""Which keys a query sees, for rows that stand at positions of their own.

Full, sliding and chunked attention have in common that a query sees an unbroken range of keys that ends with its own.
The range is all that a compiled attention needs; for the model's own attention it is written out as an additive mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from eddecode.errors import UnsupportedLayersError

T = TypeVar("T")


class KeyRangeMask(torch.Tensor):
    """A stand-in for a mask: an empty 4-D tensor that carries which keys each query sees.

    Models hand a 4-D mask on to their layers as it is, so this reaches the attention untouched.

    Attributes:
        start, end: (B, T) int64 contiguous; a query sees the keys start ≤ position < end.
    """

    start: Tensor
    end: Tensor

    @staticmethod
    def of(start: Tensor, end: Tensor) -> KeyRangeMask:
        """The stand-in for ranges (B, T)."""
        mask = torch.empty(1, 1, 1, 0).as_subclass(KeyRangeMask)
        mask.start, mask.end = start.contiguous(), end.contiguous()
        return mask


@dataclass
class AttentionMaskBuilder:
    """Masks for rows at their own positions, in the shape that a model's layers ask for.

    Models that mix kinds of layers take one mask per kind (`config.layer_types`); the others take one.
    """

    config: Any

    def build(self, positions: Tensor, stop: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Masks for queries at `positions` (B, T) over keys 0 … stop−1: (B, 1, T, stop), 0 or the dtype's minimum."""

        def write(first: Tensor, after: Tensor) -> Tensor:
            key = torch.arange(stop, device=positions.device)
            visible = (key >= first[:, None, :, None]) & (key < after[:, None, :, None])
            return torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)

        return self._each(positions, write)

    def key_ranges(self, positions: Tensor) -> KeyRangeMask | dict[str, KeyRangeMask]:
        """The same as ranges, for `eddecode.attention.slot_attention`."""
        return self._each(positions, KeyRangeMask.of)

    def _each(self, positions: Tensor, make: Callable[[Tensor, Tensor], T]) -> T | dict[str, T]:
        stop = positions + 1
        if self._mixed:
            return {kind: make(self._first(kind, positions), stop) for kind in self._kinds}
        return make(self._first(self._kinds[0], positions), stop)

    @cached_property
    def _mixed(self) -> bool:
        return getattr(self.config, "layer_types", None) is not None

    @cached_property
    def _kinds(self) -> list[str]:
        """The kinds of the model's layers; looking up what a configuration lacks takes long."""
        config = self.config
        if "local" in (getattr(config, "attention_layers", None) or ()):
            # GPT-Neo windows its local layers by itself, from the end of the keys: wrong for the shorter rows.
            raise UnsupportedLayersError("local attention with a window of the model's own")
        if self._mixed:
            return sorted(set(config.layer_types))
        if getattr(config, "sliding_window", None) is not None:
            return ["sliding_attention"]
        if getattr(config, "attention_chunk_size", None) is not None:
            return ["chunked_attention"]
        return ["full_attention"]

    def _first(self, kind: str, positions: Tensor) -> Tensor:
        """The first key that each query sees in a layer of this kind, (B, T)."""
        if kind == "full_attention":
            return torch.zeros_like(positions)
        if kind == "sliding_attention":
            return (positions - int(self.config.sliding_window) + 1).clamp(min=0)
        if kind == "chunked_attention":
            size = int(self.config.attention_chunk_size)
            return positions // size * size
        raise UnsupportedLayersError(kind)
