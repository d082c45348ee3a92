"""Compiled attention over slots, registered where transformers lets a library add its own.

Rows of a `BatchedKVCache` have lengths of their own, so each query sees a range of keys of its own. As a dense 4-D
mask, that range has to be written out and read back in every layer; as two numbers, only the keys in it are read. The
range is passed in the place of the mask (`KeyRangeMask`): a model passes its masks on to its layers unchanged, one per
kind of layer, so that sliding windows need nothing special.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from eddecode.errors import UnsupportedLayersError
from eddecode.execution.attention_mask import KeyRangeMask
from eddecode_kernels.layers_cpu import attend, attention_available

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
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return False  # layers on several devices: their masks are copied, and the copies would be empty
    return attention_available(model.dtype, model.device)
