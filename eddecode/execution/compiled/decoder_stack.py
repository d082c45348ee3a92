"""The body of a model whose decoder layers are all compiled, run as one call.

A body is recognized by its parts, as a decoder layer is: embeddings, layers, a last norm and rotary angles, and nothing
else; it must give what the model's own gives on a trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from eddecode.execution.attention import AttentionMaskBuilder, KeyRangeMask
from eddecode.execution.compiled.backends import CompiledBackend, CompiledLayers
from eddecode.execution.compiled.decoder_layer import TRIAL_TOLERANCE, CompiledDecoderLayer
from eddecode.execution.kv_cache import BatchedKVCache
from eddecode.execution.patching import patched_forward

_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}


class CompiledDecoderStack:
    """All decoder layers in one call, in the place of a body's `forward`.

    Attributes:
        layers: the layers' compiled forms, by module.
    """

    def __init__(self, body: Any, layers: Sequence[CompiledDecoderLayer], fused: CompiledLayers) -> None:
        self.layers = dict(zip(body.layers, layers, strict=True))
        self._body, self._fused, self._rows = body, fused, layers[0].rows
        self._own = partial(type(body).forward, body)
        self._indices = tuple(layer.index for layer in layers)
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
            or any(vars(layer).get("forward") is not compiled for layer, compiled in self.layers.items())
        ):
            return self._own(**inputs)
        # (B, T, d), which the layers overwrite:
        hidden = nn.functional.embedding(inputs["input_ids"], self._body.embed_tokens.weight)
        angles = self._body.rotary_emb(hidden, position_ids=inputs["position_ids"])
        contexts = {
            kind: cache.forward_context(masks[kind], angles, self._rows.active) for kind in set(self._kinds)
        }
        caches = cache.pointers(self._indices, self._fused.shape, hidden)
        self._fused(hidden, [contexts[kind] for kind in self._kinds], caches)
        # Of a mixture of experts, whose head asks for its routers' logits; others do not look.
        return MoeModelOutputWithPast(last_hidden_state=self._body.norm(hidden), past_key_values=cache)


def compile_decoder_stack(
    body: Any, layers: Mapping[Any, CompiledDecoderLayer], backend: CompiledBackend
) -> CompiledDecoderStack | None:
    """The compiled form of a body's forward pass, or None if it is not a plain stack of compiled layers.

    Args:
        body: the model without its head.
        layers: the compiled forms of its decoder layers, by module.
        backend: which compiled them.
    """
    if (
        {name for name, _ in body.named_children()} != _PARTS
        or not all(layer in layers for layer in body.layers)
        or body.config.num_hidden_layers != len(body.layers)
        or type(body.embed_tokens).forward is not nn.Embedding.forward
        or body.embed_tokens.max_norm is not None
        or any(
            module._forward_hooks or module._forward_pre_hooks for module in (*body.children(), *body.layers)
        )
    ):
        return None
    ordered = [layers[layer] for layer in body.layers]
    fused = backend.fuse_layers([layer.compiled for layer in ordered])
    if fused is None:
        return None
    stack = CompiledDecoderStack(body, ordered, fused)
    return stack if _agrees(body, stack) else None


@torch.inference_mode()
def _agrees(body: Any, stack: CompiledDecoderStack) -> bool:
    """Whether the stack gives what the body gives: two rows of three tokens, from the beginning."""
    weight = body.embed_tokens.weight
    tokens = torch.tensor([[1, 2, 3], [3, 1, 0]], device=weight.device) % weight.shape[0]
    cache = BatchedKVCache()
    cache.lengths = [0, 0]
    positions = cache.prepare_write(3).positions.to(weight.device)
    try:
        mask = AttentionMaskBuilder(body.config).key_ranges(positions)
        expected = body(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
        with patched_forward(stack.layers):
            found = stack(
                input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache
            ).last_hidden_state
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return False
    # The layers' errors add up; a scale that is left out, or a norm too many, is of the size of the states.
    limit = 10 * TRIAL_TOLERANCE[found.dtype] * expected.float().abs().max()
    return bool((found - expected).float().abs().max() <= limit)
