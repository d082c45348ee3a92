"""Decoder layers on a GPU: a few kernels per layer, with one order of every sum, whatever the batch.

Product of q, k and v → rotation and cache write → attention → product → addition and norm → feed-forward
(`feed_forward_triton`) → addition and norm. Weights of one input are joined in place (`joined_triton`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eddecode_kernels import layers_triton as kernels
from eddecode_kernels.decoder_layer import DecoderLayerWeights, ForwardContext, KVPointers
from eddecode_kernels.feed_forward_triton import feed_forward
from eddecode_kernels.joined_triton import JoinedLinear, joined


class TritonDecoderLayers:
    """One or more decoder layers as one call; see `eddecode.execution.compiled.backends.CompiledLayers`.

    Attributes:
        shape: of every layer.
    """

    def __init__(self, weights: Sequence[DecoderLayerWeights]) -> None:
        self.weights = list(weights)
        self.shape = self.weights[0].shape
        self._qkv = [joined([w.linears[name] for name in ("query", "key", "value")]) for w in self.weights]
        self._output = [joined([w.linears["output"]]) for w in self.weights]
        self._feed_forward = [feed_forward(w) for w in self.weights]

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def tile_tokens(self) -> int:
        """How many tokens a tile of `ForwardContext.tiles` may have."""
        return min(kernels.tile_tokens(w.num_heads, w.num_kv_heads, w.head_dim) for w in self.weights)

    def __call__(self, hidden: Tensor, contexts: Sequence[ForwardContext], caches: KVPointers) -> Tensor:
        """Hidden states (B, T, d), contiguous, overwritten with those after the layers.

        Raises:
            ValueError: the model was converted to another dtype, or moved.
        """
        stored = self._qkv[0].weight
        if (
            hidden.dtype != stored.dtype
            or hidden.device != stored.device
            or hidden.shape[2] != stored.shape[1]
        ):
            raise ValueError(
                f"hidden states are {tuple(hidden.shape)} {hidden.dtype} on {hidden.device} and the weights "
                f"{tuple(stored.shape)} {stored.dtype} on {stored.device}: a model must not change while it decodes"
            )
        made = {context: _contiguous(context) for context in set(contexts)}
        flat = hidden.view(-1, hidden.shape[2])  # (M, d)
        normed = torch.empty_like(flat)
        if self.weights[0].input_norm is not None:
            _add_and_norm(self.weights[0], flat, None, None, None, self.weights[0].input_norm, normed)
        following: list[DecoderLayerWeights | None] = [*self.weights[1:], None]
        steps = zip(
            self.weights, self._qkv, self._output, self._feed_forward, following,
            [made[c] for c in contexts], caches.buffers, strict=True,
        )  # fmt: skip
        for layer, qkv, output, fed_forward, after, context, (keys, values) in steps:
            tokens, lora = context.positions.shape[1], context.lora_rows
            x = flat if layer.input_norm is None else normed
            attended = _attended(layer, qkv, x, context, keys, values)
            parts = output(attended, tokens, lora)
            norm = layer.post_attention_norm
            _add_and_norm(layer, flat, parts, output.bias, layer.attention_out_norm, norm, normed)
            parts, bias = fed_forward(flat if norm is None else normed, tokens, lora)
            norm = None if after is None else after.input_norm
            _add_and_norm(layer, flat, parts, bias, layer.feed_forward_out_norm, norm, normed)
        return hidden


def _contiguous(context: ForwardContext) -> ForwardContext:
    names = ("cos", "sin", "positions", "key_start", "key_end")
    return replace(context, **{name: getattr(context, name).contiguous() for name in names})


def _attended(
    layer: DecoderLayerWeights,
    qkv: JoinedLinear,
    x: Tensor,
    context: ForwardContext,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """(M, heads · head_dim): what attention gives for the layer's normalized input x (M, d)."""
    positions = context.positions
    parts = qkv(x, positions.shape[1], context.lora_rows)
    query = x.new_empty(x.shape[0], layer.num_heads, layer.head_dim)
    torch.ops.eddecode.rotate_and_write(
        parts, qkv.bias, layer.query_norm, layer.key_norm, context.cos, context.sin, positions, query, keys, values,
        context.cos.shape[-1] if layer.rotary else 0, layer.norm_epsilon, layer.weight_offset_one,
        layer.norm_rounds_last,
    )  # fmt: skip
    out = torch.empty_like(query)
    scale, softcap = layer.attention_scale, layer.attention_softcap
    if context.tiles is not None:
        torch.ops.eddecode.attend_packed(
            query, keys, values, context.key_start, context.key_end, context.tiles, out, scale, softcap
        )
    else:
        capacity = context.capacity or keys.shape[2]
        torch.ops.eddecode.attend(
            query, keys, values, context.key_start, context.key_end, out, capacity, scale, softcap
        )
    return out.view(x.shape[0], -1)


def _add_and_norm(
    layer: DecoderLayerWeights,
    hidden: Tensor,
    parts: Tensor | None,
    bias: Tensor | None,
    after: Tensor | None,
    norm: Tensor | None,
    out: Tensor,
) -> None:
    """hidden += norm(parts + bias; after), out = norm(hidden; norm)."""
    torch.ops.eddecode.add_and_norm(
        hidden, parts, bias, after, norm, None if norm is None else out,
        layer.norm_epsilon, layer.residual_scale, layer.weight_offset_one, layer.norm_rounds_last,
    )  # fmt: skip


def compile_decoder_layer(weights: DecoderLayerWeights) -> TritonDecoderLayers | None:
    """The compiled decoder layer, or None where the kernels do not serve it: its dtype, device or layout."""
    shape = weights.shape
    device = weights.linears["output"].weight.device
    norms = [getattr(weights, name) for name in _NORMS]
    tensors = [
        t for linear in weights.linears.values() for t in (linear.weight, linear.lora_a, linear.lora_b)
    ]
    experts = [] if weights.experts is None else [weights.experts.gate_up, weights.experts.down]
    fits = all(
        t.dtype == shape.dtype and t.device == device and t.is_contiguous()
        for t in [*norms, *tensors, *experts]
        if t is not None
    )
    if not fits or weights.head_dim % 2 or not kernels.available(device, shape.dtype):
        return None
    return TritonDecoderLayers([weights])


_NORMS = (
    *("input_norm", "post_attention_norm", "query_norm", "key_norm"),
    *("attention_out_norm", "feed_forward_out_norm"),
)


def fuse_layers(layers: Sequence[TritonDecoderLayers]) -> TritonDecoderLayers | None:
    """Several layers as one call, or None if they are not of one shape, or their norms not of one kind."""
    weights = [each for layer in layers for each in layer.weights]
    kinds = {
        (w.shape, w.norm_epsilon, w.weight_offset_one, w.norm_rounds_last, w.input_norm is None)
        for w in weights
    }
    return TritonDecoderLayers(weights) if len(kinds) == 1 else None
