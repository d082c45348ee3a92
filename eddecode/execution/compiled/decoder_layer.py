"""One compiled decoder layer in the place of a model's own, after a trial has shown that both give the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eddecode.execution.attention import KeyRangeMask, attention_in
from eddecode.execution.compiled.backends import CompiledBackend, CompiledLayers
from eddecode.execution.compiled.expert_weights import is_mixture
from eddecode.execution.compiled.layer_weights import decoder_layer_weights
from eddecode.execution.compiled.lora import LoraDelta, LoraRows
from eddecode.execution.kv_cache import BatchedKVCache
from eddecode_kernels.decoder_layer import ForwardContext, KVPointers
from eddecode_kernels.launching import compile_ahead

_log = logging.getLogger(__name__)

# Relative to the largest change that the layer makes. A wrong activation, scale or pairing of heads is far above it.
TRIAL_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.01}


def compile_decoder_layer(
    layer: Any, name: str, backend: CompiledBackend, deltas: Mapping[str, LoraDelta] | None = None
) -> CompiledDecoderLayer | None:
    """The compiled form of a decoder layer's forward pass, or None if it is not a layer of the known kind.

    Args:
        layer: of the model.
        name: of the layer in the model.
        backend: where the layer is to run.
        deltas: low-rank changes, by the names of linear layers in the model.
    """
    prefix = f"{name}."
    own = {key.removeprefix(prefix): delta for key, delta in (deltas or {}).items() if key.startswith(prefix)}
    for weight_offset_one in (False, True):
        weights = decoder_layer_weights(layer, {}, weight_offset_one=weight_offset_one)
        compiled = None if weights is None else backend.compile_layer(weights)
        if compiled is None:
            return None
        if not _agrees(layer, compiled):
            continue
        if own:
            weights = decoder_layer_weights(layer, own, weight_offset_one=weight_offset_one)
            compiled = None if weights is None else backend.compile_layer(weights)
        rows = next((delta.rows for delta in own.values()), LoraRows())
        return None if compiled is None else CompiledDecoderLayer(layer, compiled, rows)
    return None


class CompiledDecoderLayer:
    """A compiled decoder layer in the place of the layer's `forward`.

    Attributes:
        compiled: by a backend.
        rows: which rows of the batch in progress add the low-rank terms.
        index: of the layer in the cache.
    """

    def __init__(self, layer: Any, compiled: CompiledLayers, rows: LoraRows) -> None:
        self.compiled, self.rows, self.index = compiled, rows, int(layer.self_attn.layer_idx)
        self._own = partial(type(layer).forward, layer)

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
        position_embeddings: Any = None,
        **options: Any,
    ) -> Any:
        """As the layer's own forward pass, which still serves where the mask and the cache are not the engine's."""
        if not isinstance(attention_mask, KeyRangeMask) or not isinstance(past_key_values, BatchedKVCache):
            return self._own(
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **options,
            )
        context = past_key_values.forward_context(attention_mask, position_embeddings, self.rows.active)
        caches = past_key_values.pointers([self.index], self.compiled.shape, hidden_states)
        hidden = hidden_states.clone(memory_format=torch.contiguous_format)  # a caller may keep what went in
        return self.compiled(hidden, [context], caches)


@torch.inference_mode()
def _agrees(layer: Any, compiled: CompiledLayers) -> bool:
    """Whether the compiled layer gives what the layer gives: two rows of three tokens, from the beginning."""
    shape = compiled.shape
    device = layer.post_attention_layernorm.weight.device
    config = layer.self_attn.config
    rope = getattr(config, "rope_parameters", None) or {}
    rotary_dim = int(shape.head_dim * (rope.get("partial_rotary_factor") or 1.0))
    rows, tokens = 2, 3
    generator = torch.Generator().manual_seed(0)
    hidden = 0.02 * torch.randn(
        rows, tokens, shape.hidden_size, generator=generator
    )  # small beside the change
    half = torch.randn(rows, tokens, rotary_dim // 2, generator=generator)
    angles = torch.cat([half, half], dim=-1)
    hidden, cos, sin = (each.to(device, shape.dtype) for each in (hidden, angles.cos(), angles.sin()))
    positions = torch.arange(tokens, device=device).expand(rows, tokens)
    mask = torch.full((tokens, tokens), torch.finfo(shape.dtype).min, dtype=shape.dtype, device=device)
    mask = mask.triu(1).expand(rows, 1, tokens, tokens)
    try:
        with attention_in(config, "eager"):  # takes a mask of any kind
            expected = layer(
                hidden, attention_mask=mask, position_ids=positions, position_embeddings=(cos, sin)
            )
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return False
    if not isinstance(expected, Tensor) or expected.shape != hidden.shape:
        return False
    buffers = hidden.new_zeros(2, rows, shape.num_kv_heads, tokens, shape.head_dim)
    context = ForwardContext(cos, sin, positions, torch.zeros_like(positions), positions + 1, None)
    caches = KVPointers([(buffers[0], buffers[1])])
    try:
        compile_ahead(device, lambda: compiled(hidden.clone(), [context], caches))
        found = compiled(hidden.clone(), [context], caches)
    except Exception as error:  # a compiler may raise anything; the layer's own forward pass still runs
        _log.warning("a compiled decoder layer failed its trial: %s: %s", type(error).__name__, error)
        return False
    change = (expected - hidden).float().abs().max().clamp(min=1e-6)
    errors = (found - expected).float().abs().amax(-1)  # per token
    # In a low dtype a near tie of a router may give a token another expert: most tokens must agree.
    worst = errors.median() if is_mixture(layer.mlp) and shape.dtype != torch.float32 else errors.max()
    return bool(worst <= TRIAL_TOLERANCE[shape.dtype] * change)
