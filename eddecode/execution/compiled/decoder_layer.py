"""Whole blocks of a model, exchanged for one compiled call each while the engine runs it.

Most of today's models are built of one kind of block: normalise, attend with turned queries and keys, add, normalise,
gated feed-forward, add. A block is known by its parts, not by its family's name: every parameter must have its place,
and the compiled block must give what the model's own gives on a trial. What is not known, or does not agree, stays as
it is, and its layers are exchanged one by one (`eddecode.layers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eddecode.execution.attention import attention_in
from eddecode.execution.attention_mask import KeyRangeMask
from eddecode.execution.compiled.lora import LoraDelta, LoraRows
from eddecode.execution.compiled.rms_norm import epsilon_of
from eddecode.execution.kv_cache import BatchedKVCache
from eddecode_kernels.decoder_layer import PRODUCTS, BlockParts, Blocks, KVPointers, Pass, Product, block_for

# Relative to the largest change that the block makes. A wrong activation, scale or pairing of heads lies far above.
TRIAL_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}

_PLACES = {  # name of a product → (module, its child)
    "query": ("self_attn", "q_proj"),
    "key": ("self_attn", "k_proj"),
    "value": ("self_attn", "v_proj"),
    "output": ("self_attn", "o_proj"),
    "gate": ("mlp", "gate_proj"),
    "up": ("mlp", "up_proj"),
    "down": ("mlp", "down_proj"),
}
_JOINED = {  # products whose weights lie one behind the other in one layer (Phi-3)
    ("self_attn", "qkv_proj"): ("query", "key", "value"),
    ("mlp", "gate_up_proj"): ("gate", "up"),
}
_ACTIVATIONS = {  # class of the activation module → its name here
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUTanh": "gelu_tanh",
}


def block_forward(
    layer: Any, name: str, changes: Mapping[str, LoraDelta] | None = None
) -> CompiledDecoderLayer | None:
    """The compiled form of a decoder layer's forward, or None if it is not a block of the known kind.

    Args:
        layer: of the model.
        name: of the layer in the model.
        changes: low-rank changes, by the names of linear layers in the model.
    """
    if not _is_plain(layer):
        return None
    mine = {
        key.removeprefix(f"{name}."): change
        for key, change in (changes or {}).items()
        if key.startswith(f"{name}.")
    }
    for from_one in (False, True):
        tried = _compiled(layer, {}, from_one)
        if tried is None:
            return None
        if _agrees(layer, tried):
            made = _compiled(layer, mine, from_one) if mine else tried
            rows = next((change.rows for change in mine.values()), LoraRows())
            return None if made is None else CompiledDecoderLayer(layer, made, rows)
    return None


def _compiled(layer: Any, changes: Mapping[str, LoraDelta], from_one: bool) -> Blocks | None:
    parts = _parts(layer, changes, from_one)
    return None if parts is None else block_for(parts)


def _is_plain(layer: Any) -> bool:
    """Whether the layer has the parts of a block, none of them hooked, replaced or converted."""
    if not all(
        hasattr(layer, part) for part in ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    ):
        return False
    return not any(
        hasattr(module, "_hf_hook") or module._forward_hooks or module._forward_pre_hooks
        for child in layer.children()
        for module in child.modules()
    )


def _parts(layer: Any, changes: Mapping[str, LoraDelta], from_one: bool) -> BlockParts | None:
    attention, norm = layer.self_attn, layer.input_layernorm
    products = _products(layer, changes)
    size, scale = getattr(attention, "head_dim", None), getattr(attention, "scaling", None)
    activation = _ACTIVATIONS.get(
        type(getattr(layer.mlp, "act_fn", getattr(layer.mlp, "activation_fn", None))).__name__
    )
    epsilon = epsilon_of(norm)
    if products is None or not size or scale is None or activation is None or epsilon is None:
        return None
    norms = [
        norm,
        layer.post_attention_layernorm,
        getattr(attention, "q_norm", None),
        getattr(attention, "k_norm", None),
    ]
    weights = [getattr(each, "weight", None) for each in norms]
    if weights[0] is None or weights[1] is None:
        return None
    used = [*weights, *(t for p in products.values() for t in (p.weight, p.bias))]
    known = {t.untyped_storage().data_ptr() for t in used if t is not None}
    if any(p.untyped_storage().data_ptr() not in known for p in layer.parameters()):
        return None  # something here is not part of a block as it is known
    return BlockParts(
        products, weights[0], weights[1], weights[2], weights[3],
        epsilon=epsilon, from_one=from_one, activation=activation,
        heads=products["query"].weight.shape[0] // size, key_heads=products["key"].weight.shape[0] // size, size=size,
        scale=float(scale),
    )  # fmt: skip


def _products(layer: Any, changes: Mapping[str, LoraDelta]) -> dict[str, Product] | None:
    """The seven products by name; None if a layer is missing or not a plain linear one."""
    found: dict[str, Product] = {}
    for name, (part, child) in _PLACES.items():
        linear = getattr(getattr(layer, part), child, None)
        if linear is not None:
            if type(linear).forward is not nn.Linear.forward:
                return None
            found[name] = _product(linear, changes.get(f"{part}.{child}"), slice(None))
    for (part, child), names in _JOINED.items():
        linear = getattr(getattr(layer, part), child, None)
        if linear is None:
            continue
        if type(linear).forward is not nn.Linear.forward:
            return None
        for name, rows in zip(names, _split(layer, linear, names), strict=True):
            found[name] = _product(linear, changes.get(f"{part}.{child}"), rows)
    return found if set(found) == set(PRODUCTS) else None


def _split(layer: Any, linear: nn.Linear, names: tuple[str, ...]) -> list[slice]:
    """Which rows of a joined layer belong to each of its products."""
    if names[0] == "gate":
        sizes = [linear.out_features // 2] * 2
    else:
        query = layer.self_attn.o_proj.in_features
        sizes = [query, *[(linear.out_features - query) // 2] * 2]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _product(linear: nn.Linear, change: LoraDelta | None, rows: slice) -> Product:
    bias = None if linear.bias is None else linear.bias[rows]
    if change is None:
        return Product(linear.weight[rows], bias)
    return Product(linear.weight[rows], bias, change.a, change.b[rows])


class CompiledDecoderLayer:
    """A compiled block in the place of a decoder layer's `forward`.

    Attributes:
        block: the compiled block.
        rows: which rows of the batch in progress take the low-rank changes.
        index: of the layer in the cache.
    """

    def __init__(self, layer: Any, block: Blocks, rows: LoraRows) -> None:
        self.block, self.rows, self.index = block, rows, int(layer.self_attn.layer_idx)
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
        """As the layer's own, which still serves where the mask and the cache are not the engine's."""
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
        cos, sin = position_embeddings
        if (
            attention_mask.common is None or attention_mask.angles is not cos
        ):  # the first that sees by this mask
            shape = (*past_key_values.positions.shape, cos.shape[-1])
            angles = cos.expand(shape), sin.expand(shape)
            attention_mask.common = pass_of(past_key_values, attention_mask, angles, self.rows)
            attention_mask.angles = cos
        heads, size, _ = self.block.shape
        places = past_key_values.places([self.index], heads, size, hidden_states)
        x = hidden_states.clone(memory_format=torch.contiguous_format)  # a caller may keep what went in
        return self.block(x, [attention_mask.common], places)


def pass_of(cache: BatchedKVCache, seen: KeyRangeMask, angles: tuple[Tensor, Tensor], rows: LoraRows) -> Pass:
    """What blocks need to know of the pass in progress; `angles` as `Pass` takes them."""
    return Pass(*angles, cache.positions, seen.first, seen.stop, rows.changed)


@torch.inference_mode()
def _agrees(layer: Any, block: Blocks) -> bool:
    """Whether the compiled block gives what the layer gives: two rows of three tokens, from the beginning."""
    dtype, width, (key_heads, size, _) = block.dtype, block.width, block.shape
    config = layer.self_attn.config
    rope = getattr(config, "rope_parameters", None) or {}
    turned = int(size * (rope.get("partial_rotary_factor") or 1.0))
    rows, tokens = 2, 3
    generator = torch.Generator().manual_seed(0)
    x = (0.02 * torch.randn(rows, tokens, width, generator=generator)).to(dtype)  # small beside the change
    half = torch.randn(rows, tokens, turned // 2, generator=generator)
    angles = torch.cat([half, half], dim=-1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    position = torch.arange(tokens).expand(rows, tokens)
    hidden = (
        torch.full((tokens, tokens), torch.finfo(dtype).min, dtype=dtype)
        .triu(1)
        .expand(rows, 1, tokens, tokens)
    )
    try:
        with attention_in(config, "eager"):  # takes a mask of any kind
            expected = layer(x, attention_mask=hidden, position_ids=position, position_embeddings=(cos, sin))
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return False
    if not isinstance(expected, Tensor) or expected.shape != x.shape:
        return False
    store = torch.zeros(2, rows, key_heads, tokens, size, dtype=dtype)
    common = Pass(cos, sin, position, torch.zeros_like(position), position + 1, None)
    found = block(x.clone(), [common], KVPointers([(store[0], store[1])]))
    change = (expected - x).float().abs().max().clamp(min=1e-6)
    return bool((found - expected).float().abs().max() <= TRIAL_TOLERANCE[dtype] * change)
