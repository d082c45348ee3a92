"""The body of a model whose layers are all compiled blocks, run as one call.

What the library does around the layers of a step (checks, masks, one Python call per layer) takes a millisecond for a
dozen layers, while a small model's weights are read in five. A body is known by its parts, as a block is: embeddings,
layers, a last norm and rotary angles, and nothing else; it must give what the model's own gives on a trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from eddecode.execution.attention_mask import AttentionMaskBuilder, KeyRangeMask
from eddecode.execution.compiled.decoder_layer import TRIAL_TOLERANCE, CompiledDecoderLayer, pass_of
from eddecode.execution.kv_cache import BatchedKVCache
from eddecode.execution.patching import patched_forward
from eddecode_kernels.decoder_layer import in_a_row

_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}


class CompiledDecoderStack:
    """All decoder layers in one call, in the place of a body's `forward`.

    Attributes:
        blocks: the layers' compiled forms.

    Raises:
        ValueError: the layers are not of one shape.
    """

    def __init__(self, body: Any, blocks: Sequence[CompiledDecoderLayer]) -> None:
        fused = in_a_row([block.block for block in blocks])
        if fused is None:
            raise ValueError("the blocks of the body are not of one shape")
        self.blocks, self._fused = blocks, fused
        self._body, self._rows = body, blocks[0].rows
        self._own = partial(type(body).forward, body)
        self._compiled = dict(zip(body.layers, blocks, strict=True))
        self._indices = tuple(block.index for block in blocks)
        kinds = getattr(body.config, "layer_types", None)
        self._kinds = tuple(kinds[index] if kinds else None for index in self._indices)

    def __call__(self, **inputs: Any) -> Any:
        """As the body's own forward pass, which still serves where the mask and the cache are not the engine's.

        And where something else stands in for one of the layers.
        """
        mask, cache = inputs.get("attention_mask"), inputs.get("past_key_values")
        masks: dict[Any, Any] = mask if isinstance(mask, dict) else dict.fromkeys(self._kinds, mask)
        if (
            inputs.get("input_ids") is None
            or inputs.get("inputs_embeds") is not None
            or not isinstance(cache, BatchedKVCache)
            or not all(isinstance(each, KeyRangeMask) for each in masks.values())
            or any(vars(layer).get("forward") is not block for layer, block in self._compiled.items())
        ):
            return self._own(**inputs)
        # (B, T, d), which the layers overwrite:
        hidden = nn.functional.embedding(inputs["input_ids"], self._body.embed_tokens.weight)
        positions = inputs["position_ids"]
        cos, sin = self._body.rotary_emb(hidden, position_ids=positions)
        shape = (*positions.shape, cos.shape[-1])
        angles = cos.expand(shape), sin.expand(shape)
        passes = {kind: pass_of(cache, masks[kind], angles, self._rows) for kind in set(self._kinds)}
        heads, size, _ = self._fused.shape
        places = cache.places(self._indices, heads, size, hidden)
        self._fused(hidden, [passes[kind] for kind in self._kinds], places)
        return BaseModelOutputWithPast(last_hidden_state=self._body.norm(hidden), past_key_values=cache)

    def installed(self) -> AbstractContextManager[None]:
        """Within the block the layers run their compiled forms, for a trial."""
        return patched_forward(self._compiled)


def stack_forward(body: Any, blocks: Mapping[Any, CompiledDecoderLayer]) -> CompiledDecoderStack | None:
    """The compiled form of a body's forward, or None if it is not a plain stack of blocks.

    Args:
        body: the model without its head.
        blocks: its layers that are compiled blocks.
    """
    if (
        {name for name, _ in body.named_children()} != _PARTS
        or not all(layer in blocks for layer in body.layers)
        or body.config.num_hidden_layers != len(body.layers)
        or type(body.embed_tokens).forward is not nn.Embedding.forward
        or body.embed_tokens.max_norm is not None
        or any(
            module._forward_hooks or module._forward_pre_hooks for module in (*body.children(), *body.layers)
        )
    ):
        return None
    try:
        stack = CompiledDecoderStack(body, [blocks[layer] for layer in body.layers])
    except ValueError:  # blocks of several shapes
        return None
    return stack if _agrees(body, stack) else None


@torch.inference_mode()
def _agrees(body: Any, stack: CompiledDecoderStack) -> bool:
    """Whether the stack gives what the body gives: two rows of three tokens, from the beginning."""
    tokens = torch.tensor([[1, 2, 3], [3, 1, 0]]) % body.embed_tokens.weight.shape[0]
    cache = BatchedKVCache()
    cache.lengths = [0, 0]
    positions = cache.open(3).positions
    try:
        seen = AttentionMaskBuilder(body.config).seen(positions)
        expected = body(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
        with stack.installed():
            found = stack(
                input_ids=tokens, attention_mask=seen, position_ids=positions, past_key_values=cache
            ).last_hidden_state
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return False
    # Errors of the blocks add up; a scale that is left out, or a norm too many, is of the size of the states.
    limit = 10 * TRIAL_TOLERANCE[found.dtype] * expected.float().abs().max()
    return bool((found - expected).float().abs().max() <= limit)
