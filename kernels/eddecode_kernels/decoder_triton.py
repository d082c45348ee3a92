"""Decoder layers on a GPU: seven kernels per layer, with one order of every sum, whatever the batch.

Product of q, k and v → rotation and cache write → attention → product → addition and norm → product of gate and up →
gate → product → addition and norm. The weights of q, k, v and of gate, up are joined in place: the parameters of the
model become views of the joined tensor, so that nothing is held twice and the model works as before.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eddecode_kernels import layers_triton as kernels
from eddecode_kernels.decoder_layer import DecoderLayerWeights, ForwardContext, KVPointers, LinearWeights


@dataclass(frozen=True)
class JoinedLinear:
    """Linear layers of one input as one product, with the low-rank terms of all of them.

    Attributes:
        weight: (N, K).
        bias: (N,) or None.
        lora_a, lora_b: (r, K) and (N, r), or None.
    """

    weight: Tensor
    bias: Tensor | None
    lora_a: Tensor | None
    lora_b: Tensor | None

    def __call__(self, x: Tensor, tokens: int, lora_rows: slice | None) -> Tensor:
        """The parts (SPLIT, M, N) float32 of x (M, K) times the weights; the bias is left to the next kernel."""
        parts = kernels.product(x, self.weight)
        if self.lora_a is not None and lora_rows is not None:
            low = kernels.product(x, self.lora_a)
            start, step = lora_rows.start or 0, lora_rows.step or 1
            torch.ops.eddecode.add_low_rank(low, self.lora_b, parts[0], tokens, start, step)
        return parts


class TritonDecoderLayers:
    """One or more decoder layers as one call; see `eddecode.execution.compiled.backends.CompiledLayers`.

    Attributes:
        shape: of every layer.
        tile_tokens: how many tokens a tile of `ForwardContext.tiles` may have.
    """

    def __init__(self, weights: Sequence[DecoderLayerWeights]) -> None:
        self.weights = list(weights)
        self.shape = self.weights[0].shape
        self.tile_tokens = min(kernels.tile_tokens(w.num_heads, w.num_kv_heads) for w in self.weights)
        self._linears = [
            {
                "qkv": _joined([w.linears[name] for name in ("query", "key", "value")]),
                "output": _joined([w.linears["output"]]),
                "gate_up": _joined([w.linears["gate"], w.linears["up"]]),
                "down": _joined([w.linears["down"]]),
            }
            for w in self.weights
        ]

    def __len__(self) -> int:
        return len(self.weights)

    def __call__(self, hidden: Tensor, contexts: Sequence[ForwardContext], caches: KVPointers) -> Tensor:
        """Hidden states (B, T, d), contiguous, overwritten with those after the layers.

        Raises:
            ValueError: the model was converted to another dtype, or moved.
        """
        stored = self._linears[0]["qkv"].weight
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
        for layer, linears, after, context, (keys, values) in zip(
            self.weights, self._linears, following, [made[c] for c in contexts], caches.buffers, strict=True
        ):
            tokens, lora = context.positions.shape[1], context.lora_rows
            x = flat if layer.input_norm is None else normed
            attended = _attended(layer, linears["qkv"], x, context, keys, values)
            parts = linears["output"](attended, tokens, lora)
            norm, bias = layer.post_attention_norm, linears["output"].bias
            _add_and_norm(layer, flat, parts, bias, layer.attention_out_norm, norm, normed)
            x = flat if norm is None else normed
            parts = linears["gate_up"](x, tokens, lora)
            gated = x.new_empty(x.shape[0], parts.shape[2] // 2)
            torch.ops.eddecode.gate(parts, linears["gate_up"].bias, gated, layer.activation == "gelu_tanh")
            parts = linears["down"](gated, tokens, lora)
            norm, bias = None if after is None else after.input_norm, linears["down"].bias
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
    device = weights.linears["down"].weight.device
    norms = [getattr(weights, name) for name in _NORMS]
    tensors = [
        t for linear in weights.linears.values() for t in (linear.weight, linear.lora_a, linear.lora_b)
    ]
    fits = all(
        t.dtype == shape.dtype and t.device == device and t.is_contiguous()
        for t in [*norms, *tensors]
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


# Joining weights ---------------------------------------------------------------------------------------------------

_known_joins: weakref.WeakValueDictionary[Any, Tensor] = weakref.WeakValueDictionary()


def _joined(linears: Sequence[LinearWeights]) -> JoinedLinear:
    """Linear layers of one input as one; their weights become views of the joined one."""
    if len(linears) == 1:
        only = linears[0]
        return JoinedLinear(only.weight, only.bias, only.lora_a, only.lora_b)
    bias = None
    if any(linear.bias is not None for linear in linears):
        biases = [
            linear.weight.new_zeros(linear.weight.shape[0]) if linear.bias is None else linear.bias
            for linear in linears
        ]
        bias = torch.cat([each.detach() for each in biases])
    lora_a, lora_b = _joined_low_rank(linears)
    return JoinedLinear(join_in_place([linear.weight for linear in linears]), bias, lora_a, lora_b)


def _joined_low_rank(linears: Sequence[LinearWeights]) -> tuple[Tensor | None, Tensor | None]:
    """The factors of all layers: A's one above the other, B's as blocks on a diagonal."""
    changed = [linear for linear in linears if linear.lora_a is not None]
    if not changed:
        return None, None
    a = torch.cat([linear.lora_a for linear in changed if linear.lora_a is not None])
    b = a.new_zeros(sum(linear.weight.shape[0] for linear in linears), a.shape[0])
    row = column = 0
    for linear in linears:
        if linear.lora_a is not None and linear.lora_b is not None:
            rank = linear.lora_a.shape[0]
            b[row : row + linear.weight.shape[0], column : column + rank] = linear.lora_b
            column += rank
        row += linear.weight.shape[0]
    return a, b


@torch.inference_mode(False)
@torch.no_grad()
def join_in_place(weights: Sequence[Tensor]) -> Tensor:
    """Weights (Nᵢ, K) as one (ΣNᵢ, K), of which each becomes a view; models that shared them still do."""
    first, total = weights[0], sum(w.shape[0] for w in weights)
    ends = [w.data_ptr() + w.nbytes for w in weights]
    same_storage = len({w.untyped_storage().data_ptr() for w in weights}) == 1
    if same_storage and [w.data_ptr() for w in weights[1:]] == ends[:-1]:
        return first.detach().as_strided((total, first.shape[1]), (first.shape[1], 1))
    key = (first.device, first.dtype, *((w.data_ptr(), tuple(w.shape)) for w in weights))
    sizes = [w.shape[0] for w in weights]
    whole = _known_joins.get(key)  # of a model that shares these weights; an address may have been used again
    if whole is None or not all(
        torch.equal(a, b) for a, b in zip(torch.split(whole, sizes), weights, strict=True)
    ):
        whole = torch.cat([w.detach() for w in weights])
        _known_joins[key] = whole
    for weight, part in zip(weights, torch.split(whole, sizes), strict=True):
        weight.data = part
    return whole
