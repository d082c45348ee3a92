"""Which keys of a `BatchedKVCache` each query sees, as ranges or written out as masks; and attention over ranges.

Rows of the cache have lengths of their own, so each query sees keys of its own. In full, sliding and chunked attention
these are an unbroken range that ends with the query's own key. As a dense 4-D mask, the ranges have to be written out
and read back in every layer; as two numbers, only the keys in them are read. Compiled attention takes the ranges
(`KeyRangeMask`), which are passed in the place of the mask: a model passes its masks on to its layers unchanged, one
per kind of layer, so that sliding windows need nothing special. It is registered where transformers lets a library add
its own; a model's own attention gets dense masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AttentionInterface

from eddecode.errors import UnsupportedLayersError
from eddecode.models.sizes import has_accelerate_hooks
from eddecode_kernels.layers_cpu import attend, attention_available

T = TypeVar("T")

NAME = "eddecode_slots"

# Arguments that models pass and that change nothing here; any other that is set is not supported.
_IRRELEVANT = frozenset(
    (
        "position_ids",
        "cache_position",
        "position_embeddings",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "is_causal",
        "sliding_window",
        "past_key_values",
        "layer_idx",
    )
)


class KeyRangeMask(torch.Tensor):
    """A mask in the form of ranges: an empty 4-D tensor that carries which keys each query sees.

    Models pass a 4-D mask on to their layers unchanged, so this one reaches the attention.

    Attributes:
        start, end: (B, T) int64 contiguous; a query sees the keys start ≤ position < end.
        tiles: of a packed pass, see `ForwardContext`; else None.
    """

    start: Tensor
    end: Tensor
    tiles: Tensor | None

    @staticmethod
    def of(start: Tensor, end: Tensor, tiles: Tensor | None = None) -> KeyRangeMask:
        """The mask of ranges (B, T)."""
        mask = torch.empty(1, 1, 1, 0).as_subclass(KeyRangeMask)
        mask.start, mask.end, mask.tiles = start.contiguous(), end.contiguous(), tiles
        return mask


@dataclass
class AttentionMaskBuilder:
    """Masks for rows at their own positions, in the shape that a model's layers ask for.

    Models that mix kinds of layers take one mask per kind (`config.layer_types`); the others take one.
    """

    config: Any

    def build(self, positions: Tensor, end: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Dense masks (B, 1, T, end) of queries at `positions` (B, T) over keys 0 … end−1: 0 or the dtype's minimum."""

        def dense(key_start: Tensor, key_end: Tensor) -> Tensor:
            key = torch.arange(end, device=positions.device)
            visible = (key >= key_start[:, None, :, None]) & (key < key_end[:, None, :, None])
            return torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)

        return self._each(positions, dense)

    def key_ranges(self, positions: Tensor) -> KeyRangeMask | dict[str, KeyRangeMask]:
        """The same as ranges, for `slot_attention`."""
        return self._each(positions, KeyRangeMask.of)

    def packed_key_ranges(
        self, positions: Tensor, origins: Tensor, tiles: Tensor
    ) -> KeyRangeMask | dict[str, KeyRangeMask]:
        """The ranges of texts one after another in one row.

        Args:
            positions: (1, T) of tokens in their texts.
            origins: (1, T) where the texts begin in the row.
            tiles: see `ForwardContext`.
        """
        return self._each(
            positions, lambda start, end: KeyRangeMask.of(start + origins, end + origins, tiles)
        )

    def _each(self, positions: Tensor, make: Callable[[Tensor, Tensor], T]) -> T | dict[str, T]:
        end = positions + 1
        if self._mixed:
            return {kind: make(self._key_start(kind, positions), end) for kind in self._kinds}
        return make(self._key_start(self._kinds[0], positions), end)

    @cached_property
    def _mixed(self) -> bool:
        return getattr(self.config, "layer_types", None) is not None

    @cached_property
    def _kinds(self) -> list[str]:
        """The kinds of the model's layers; cached, because a configuration is slow to look up what it lacks."""
        config = self.config
        if "local" in (getattr(config, "attention_layers", None) or ()):
            # GPT-Neo applies its windows itself, counted from the end of the keys: wrong for the shorter rows.
            raise UnsupportedLayersError("local attention with a window of the model's own")
        if self._mixed:
            return sorted(set(config.layer_types))
        if getattr(config, "sliding_window", None) is not None:
            return ["sliding_attention"]
        if getattr(config, "attention_chunk_size", None) is not None:
            return ["chunked_attention"]
        return ["full_attention"]

    def _key_start(self, kind: str, positions: Tensor) -> Tensor:
        """The first key that each query sees in a layer of this kind, (B, T)."""
        if kind == "full_attention":
            return torch.zeros_like(positions)
        if kind == "sliding_attention":
            return (positions - int(self.config.sliding_window) + 1).clamp(min=0)
        if kind == "chunked_attention":
            size = int(self.config.attention_chunk_size)
            return positions // size * size
        raise UnsupportedLayersError(kind)


def slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that models call: see `transformers.AttentionInterface` and `attend`.

    Raises:
        UnsupportedLayersError: the layer asks for something that this attention does not do (sinks, position biases).
    """
    unknown = sorted(
        name
        for name, value in options.items()
        if not (value is None or value is False or name in _IRRELEVANT)
    )
    if unknown or dropout or not isinstance(attention_mask, KeyRangeMask):
        raise UnsupportedLayersError(f"attention with {', '.join(unknown) or 'a mask of its own'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, attention_mask.start, attention_mask.end, scale, softcap or 0.0), None


AttentionInterface.register(NAME, slot_attention)


@contextmanager
def attention_in(config: Any, name: str = NAME) -> Iterator[None]:
    """Within the block a model with this text config uses the attention of this name, by default `slot_attention`."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def can_attend(model: Any) -> bool:
    """Whether compiled attention serves a model: its dtype and device, and all of its layers on that device."""
    if has_accelerate_hooks(model):
        return False  # layers on several devices: their masks are copied, and the copies would be empty
    return attention_available(model.dtype, model.device)
