"""Recognizes a decoder layer by its parts, and takes its weights as one record.

Most of today's models are built of one kind of decoder layer: normalize, attend over rotated queries and keys, add;
normalize, gated feed-forward, add. Every parameter of a layer must have its place in that, and nothing may be hooked or
replaced. What a layer computes with these weights is not looked at here: a trial shows it (`decoder_layer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from eddecode.execution.compiled.lora import LoraDelta
from eddecode.execution.compiled.rms_norm import norm_epsilon
from eddecode.execution.patching import has_hooks
from eddecode_kernels.decoder_layer import LINEARS, DecoderLayerWeights, LinearWeights

_PARTS = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
_MODULES = {  # name of a linear layer → (module, its child)
    "query": ("self_attn", "q_proj"),
    "key": ("self_attn", "k_proj"),
    "value": ("self_attn", "v_proj"),
    "output": ("self_attn", "o_proj"),
    "gate": ("mlp", "gate_proj"),
    "up": ("mlp", "up_proj"),
    "down": ("mlp", "down_proj"),
}
_JOINED = {  # linear layers whose weights are rows of one matrix (Phi-3)
    ("self_attn", "qkv_proj"): ("query", "key", "value"),
    ("mlp", "gate_up_proj"): ("gate", "up"),
}
_ACTIVATIONS = {  # class of the activation module → name in `DecoderLayerWeights`
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUTanh": "gelu_tanh",
}


def decoder_layer_weights(
    layer: Any, deltas: Mapping[str, LoraDelta], *, weight_offset_one: bool
) -> DecoderLayerWeights | None:
    """The weights of a decoder layer, or None if it is not one of the known kind.

    Args:
        layer: a module of the model.
        deltas: low-rank changes, by the names of linear layers in `layer`.
        weight_offset_one: whether norms multiply by 1 + weight, which the modules do not tell.
    """
    if not all(hasattr(layer, part) for part in _PARTS) or _is_changed(layer):
        return None
    attention = layer.self_attn
    linears = _linears(layer, deltas)
    head_dim, scale = getattr(attention, "head_dim", None), getattr(attention, "scaling", None)
    activation = getattr(layer.mlp, "act_fn", getattr(layer.mlp, "activation_fn", None))
    activation_name = _ACTIVATIONS.get(type(activation).__name__)
    epsilon = norm_epsilon(layer.input_layernorm)
    if linears is None or not head_dim or scale is None or activation_name is None or epsilon is None:
        return None
    norms: list[Any] = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)]
    input_norm, post_attention_norm, query_norm, key_norm = (getattr(n, "weight", None) for n in norms)
    if input_norm is None or post_attention_norm is None:
        return None
    used = [input_norm, post_attention_norm, query_norm, key_norm]
    used += [tensor for linear in linears.values() for tensor in (linear.weight, linear.bias)]
    known = {tensor.untyped_storage().data_ptr() for tensor in used if tensor is not None}
    if any(parameter.untyped_storage().data_ptr() not in known for parameter in layer.parameters()):
        return None  # some parameter has no place in a layer of this kind
    return DecoderLayerWeights(
        linears,
        input_norm,
        post_attention_norm,
        query_norm,
        key_norm,
        norm_epsilon=epsilon,
        weight_offset_one=weight_offset_one,
        activation=activation_name,
        num_heads=linears["query"].weight.shape[0] // head_dim,
        num_kv_heads=linears["key"].weight.shape[0] // head_dim,
        head_dim=head_dim,
        attention_scale=float(scale),
    )


def _is_changed(layer: Any) -> bool:
    """Whether some part of the layer is hooked, replaced, or offloaded."""
    return any(
        hasattr(module, "_hf_hook") or has_hooks(module)
        for child in layer.children()
        for module in child.modules()
    )


def _linears(layer: Any, deltas: Mapping[str, LoraDelta]) -> dict[str, LinearWeights] | None:
    """The seven linear layers by name; None if one is missing or is not a plain linear layer."""
    found: dict[str, LinearWeights] = {}
    joined = {place: (name,) for name, place in _MODULES.items()} | _JOINED
    for (part, child), names in joined.items():
        linear = getattr(getattr(layer, part), child, None)
        if linear is None:
            continue
        if type(linear).forward is not nn.Linear.forward:
            return None
        for name, rows in zip(names, _split(layer, linear, names), strict=True):
            found[name] = _linear(linear, deltas.get(f"{part}.{child}"), rows)
    return found if set(found) == set(LINEARS) else None


def _split(layer: Any, linear: nn.Linear, names: tuple[str, ...]) -> list[slice]:
    """Which rows of a joined matrix belong to each of its linear layers."""
    if len(names) == 1:
        return [slice(None)]
    if names[0] == "gate":
        sizes = [linear.out_features // 2] * 2
    else:
        query = layer.self_attn.o_proj.in_features
        sizes = [query, *[(linear.out_features - query) // 2] * 2]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _linear(linear: nn.Linear, delta: LoraDelta | None, rows: slice) -> LinearWeights:
    bias = None if linear.bias is None else linear.bias[rows]
    if delta is None:
        return LinearWeights(linear.weight[rows], bias)
    return LinearWeights(linear.weight[rows], bias, delta.a, delta.b[rows])
