"""Recognizes a decoder layer by its parts, and takes its weights as one record.

Most of today's models are built of one kind of decoder layer: normalize, attend over rotated queries and keys, add;
normalize, gated feed-forward, add. Some normalize what is added, too, or instead (Gemma 2, OLMo 2); in some the
feed-forward is a mixture of experts (`expert_weights`). Every parameter of a layer must have its place in that, and
nothing may be hooked or replaced. What a layer computes with these weights is
not looked at here: a trial shows it (`decoder_layer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from torch import nn

from eddecode.execution.compiled.expert_weights import expert_weights, is_mixture
from eddecode.execution.compiled.lora import LoraDelta
from eddecode.execution.compiled.rms_norm import norm_epsilon, rounds_last
from eddecode.execution.patching import has_hooks
from eddecode_kernels.decoder_layer import DecoderLayerWeights, LinearWeights

_PARTS = ("self_attn", "mlp", "post_attention_layernorm")
_MODULES = {  # name of a linear layer → (module, its child)
    "query": ("self_attn", "q_proj"),
    "key": ("self_attn", "k_proj"),
    "value": ("self_attn", "v_proj"),
    "output": ("self_attn", "o_proj"),
    "gate": ("mlp", "gate_proj"),
    "up": ("mlp", "up_proj"),
    "down": ("mlp", "down_proj"),
}
_SHARED = {  # the same of the expert that every token takes
    "shared_gate": ("mlp", "shared_expert_gate"),
    "gate": ("mlp.shared_expert", "gate_proj"),
    "up": ("mlp.shared_expert", "up_proj"),
    "down": ("mlp.shared_expert", "down_proj"),
}
_FEED_FORWARD = ("gate", "up", "down")
_JOINED = {  # linear layers whose weights are rows of one matrix (Phi-3)
    ("self_attn", "qkv_proj"): ("query", "key", "value"),
    ("mlp", "gate_up_proj"): ("gate", "up"),
}
NORMS = (
    *("input_norm", "post_attention_norm", "query_norm", "key_norm"),
    *("attention_out_norm", "feed_forward_out_norm"),
)
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
    routed = is_mixture(layer.mlp)
    experts = expert_weights(layer.mlp) if routed else None
    if routed and experts is None:
        return None
    linears = _linears(layer, deltas, routed)
    head_dim, scale = getattr(attention, "head_dim", None), getattr(attention, "scaling", None)
    activation_name = _activation(layer.mlp)
    norms = _norms(layer)
    epsilons = {norm_epsilon(norm) for norm in norms.values()}
    if linears is None or not head_dim or scale is None or activation_name is None or len(epsilons) != 1:
        return None
    epsilon = epsilons.pop()
    norm_weights = {name: getattr(norm, "weight", None) for name, norm in norms.items()}
    if epsilon is None or any(weight is None for weight in norm_weights.values()):
        return None
    used = [*norm_weights.values()]
    used += [tensor for linear in linears.values() for tensor in (linear.weight, linear.bias)]
    used += [] if experts is None else [experts.gate_up, experts.down]
    known = {tensor.untyped_storage().data_ptr() for tensor in used if tensor is not None}
    if any(parameter.untyped_storage().data_ptr() not in known for parameter in layer.parameters()):
        return None  # some parameter has no place in a layer of this kind
    return DecoderLayerWeights(
        linears,
        **{name: norm_weights.get(name) for name in NORMS},
        norm_epsilon=epsilon,
        weight_offset_one=weight_offset_one,
        norm_rounds_last=rounds_last(next(iter(norms.values())), weight_offset_one),
        activation=activation_name,
        num_heads=linears["query"].weight.shape[0] // head_dim,
        num_kv_heads=linears["key"].weight.shape[0] // head_dim,
        head_dim=head_dim,
        attention_scale=float(scale),
        attention_softcap=float(getattr(attention, "attn_logit_softcapping", None) or 0.0),
        residual_scale=float(getattr(layer, "residual_multiplier", 1.0)),
        rotary=bool(getattr(attention, "use_rope", True)),
        experts=experts,
    )


def _activation(feed_forward: Any) -> str | None:
    """The name in `DecoderLayerWeights` of the activation of a feed-forward and all its experts; None if unknown."""
    parts = [feed_forward]
    if is_mixture(feed_forward):
        parts = [feed_forward.experts, getattr(feed_forward, "shared_expert", feed_forward.experts)]
    modules = [getattr(part, "act_fn", getattr(part, "activation_fn", None)) for part in parts]
    names = {_ACTIVATIONS.get(type(module).__name__) for module in modules}
    return names.pop() if len(names) == 1 else None


def _norms(layer: Any) -> dict[str, Any]:
    """The norms of a layer, by their names in `DecoderLayerWeights`; families call them by their number."""
    before = getattr(layer, "input_layernorm", None)
    after = layer.post_attention_layernorm
    last = getattr(layer, "post_feedforward_layernorm", None)
    middle = getattr(layer, "pre_feedforward_layernorm", None)
    named = {
        "input_norm": before,
        "post_attention_norm": after if last is None else middle,
        "query_norm": getattr(layer.self_attn, "q_norm", None),
        "key_norm": getattr(layer.self_attn, "k_norm", None),
        "attention_out_norm": None if last is None else after,
        "feed_forward_out_norm": last,
    }
    return {name: norm for name, norm in named.items() if norm is not None}


def _is_changed(layer: Any) -> bool:
    """Whether some part of the layer is hooked, replaced, or offloaded."""
    return any(
        hasattr(module, "_hf_hook") or has_hooks(module)
        for child in layer.children()
        for module in child.modules()
    )


def _linears(layer: Any, deltas: Mapping[str, LoraDelta], routed: bool) -> dict[str, LinearWeights] | None:
    """The linear layers by name; None if one is missing or is not a plain linear layer.

    routed: the feed-forward is a mixture of experts: its linear layers are those of the router and the shared expert.
    """
    found: dict[str, LinearWeights] = {}
    places = {name: place for name, place in _MODULES.items() if not (routed and name in _FEED_FORWARD)}
    wanted = set(places)
    if routed:
        found["router"] = LinearWeights(layer.mlp.gate.weight)
        if hasattr(layer.mlp, "shared_expert"):
            places |= _SHARED
        wanted = {"router", *places}
    joined = {place: (name,) for name, place in places.items()} | _JOINED
    for (part, child), names in joined.items():
        linear = getattr(attrgetter(part)(layer), child, None)
        if linear is None:
            continue
        if type(linear).forward is not nn.Linear.forward or not hasattr(layer.self_attn, "o_proj"):
            return None  # `o_proj` tells the sizes in a joined matrix
        for name, rows in zip(names, _split(layer, linear, names), strict=True):
            found[name] = _linear(linear, deltas.get(f"{part}.{child}"), rows)
    return found if set(found) == wanted else None


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
    # The parameter itself where it is one layer's: a backend may join it with others in place.
    weight = linear.weight if rows == slice(None) else linear.weight[rows]
    if delta is None:
        return LinearWeights(weight, bias)
    return LinearWeights(weight, bias, delta.a, delta.b[rows])
