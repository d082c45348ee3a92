"""How two models differ, tensor by tensor, and what holding them costs.

The relative movement ‖aligned − base‖ / ‖base‖ (Frobenius) shows where the alignment went: a layer that was frozen is
identical to the bit, and a pair that differs nowhere is one model loaded twice. Tensors are read in chunks, so that
nothing of a model's size is held a second time. Equal tensors are held once; layers that are equal from the first one
on are a trunk that can be run once for both models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eddecode.checkpoint import combine, tensor_digest
from eddecode.errors import PairError
from eddecode.estimate import cache_bytes_per_token

_CHUNK = 1 << 22  # elements: 32 MB as float64
_LAYER = re.compile(r"^(.*?\.\d+)(?:\.|$)")


def named_tensors(model: Any) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, a tied one under its first name only."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def compare_tensors(base: Any, aligned: Any) -> dict[str, Any]:
    """Which tensors are equal to the bit, and how far the others moved. The schema is in `ModelPair.describe`."""
    ours, theirs = named_tensors(base), all_names(aligned)
    also_theirs = named_tensors(aligned)
    layers: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {
        "identical": [],
        "moved": {},
        "different_shape": [],
        "not_in_memory": [],
        "only_base": sorted(ours.keys() - theirs.keys()),
        "only_aligned": sorted(also_theirs.keys() - all_names(base).keys()),
    }
    identical_bytes = 0
    for name in [name for name in ours if name in theirs]:
        a, b = ours[name], theirs[name]
        if a.is_meta or b.is_meta:  # offloaded by a device_map
            result["not_in_memory"].append(name)
        elif a.shape != b.shape:
            result["different_shape"].append(name)
        else:
            same, moved, size = _difference(a, b)
            layer = layers.setdefault(layer_of(name), {"moved": 0.0, "size": 0.0, "n": 0, "identical": True})
            layer["moved"] += moved
            layer["size"] += size
            layer["n"] += a.numel()
            layer["identical"] &= same
            if same:
                result["identical"].append(name)
                identical_bytes += a.nbytes
            else:
                result["moved"][name] = _ratio(moved, size)
    result["identical_bytes"] = identical_bytes
    result["layers"] = [
        {
            "layer": name,
            "parameters": layer["n"],
            "identical": layer["identical"],
            "relative_change": _ratio(layer["moved"], layer["size"]),
        }
        for name, layer in layers.items()
    ]
    result["relative_change"] = _ratio(
        sum(layer["moved"] for layer in layers.values()), sum(layer["size"] for layer in layers.values())
    )
    trunk = common_trunk(base, aligned)
    result["trunk"] = None if trunk is None else asdict(trunk)
    return result


def all_names(model: Any) -> dict[str, Tensor]:
    """Every tensor under every one of its names (a tied head under both)."""
    return {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to: `model.layers.3` for `model.layers.3.mlp.up_proj.weight`."""
    match = _LAYER.match(name)
    return match.group(1) if match else name.rpartition(".")[0] or name


def _ratio(moved: float, size: float) -> float | None:
    """√(moved / size) for two squared norms; None where a tensor of zeros moved (no relative size)."""
    if moved == 0.0:
        return 0.0
    return (moved / size) ** 0.5 if size > 0.0 else None


def _difference(a: Tensor, b: Tensor) -> tuple[bool, float, float]:
    """(equal to the bit, ‖b − a‖², ‖a‖²), in float64 chunk by chunk."""
    same = a.dtype == b.dtype
    moved = size = 0.0
    left, right = a.reshape(-1), b.reshape(-1)
    for start in range(0, left.numel(), _CHUNK):
        x, y = left[start : start + _CHUNK], right[start : start + _CHUNK].to(a.device)
        same = same and torch.equal(_bits(x), _bits(y))
        wide = x.double()
        size += float(wide.square().sum())
        if not same:
            moved += float((y.double() - wide).square().sum())
    return same, moved, size


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def model_digest(model: Any, eos_ids: frozenset[int]) -> bytes:
    """16 bytes over configuration, EOS ids and every tensor in memory; for models that came from no file."""
    if any(tensor.is_meta for tensor in named_tensors(model).values()):
        raise PairError(
            "a model given in memory has weights that are offloaded, so that its content cannot be fingerprinted; load "
            "it from its files with ModelPair.load(…, device_map=…), or give it before it is offloaded"
        )
    config = {
        k: v for k, v in model.config.to_dict().items() if k not in ("transformers_version", "_name_or_path")
    }
    head = repr((sorted(config.items(), key=lambda item: item[0]), sorted(eos_ids))).encode()
    tensors = sorted(
        tensor_digest(name, str(tensor.dtype), tensor.shape, _buffers(tensor))
        for name, tensor in named_tensors(model).items()
    )
    return combine(head, *tensors)


def _buffers(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        yield _bits(flat[start : start + _CHUNK].cpu()).numpy().data


# Held once -------------------------------------------------------------------------------------------------------


def share_identical(models: Sequence[Any]) -> int:
    """Let later models use an earlier model's copy of every tensor that is equal to the bit; bytes given back.

    Found by content, whatever the tensors are called. Only plain tensors that are frozen, in memory and on the same
    device are shared, and none within one model: a quantised weight carries a state of its own, and a weight that is
    trained would take the other model with it. Whoever writes into a weight afterwards writes into both.
    """
    kept: dict[tuple[Any, ...], dict[str, Tensor]] = {}
    freed = 0
    for model in models:
        own: list[tuple[tuple[Any, ...], str, Tensor]] = []
        for name, tensor in _shareable(model).items():
            key = (tensor.dtype, tensor.shape, tensor.device, _sample(tensor))
            others = kept.get(key, {})
            likely = sorted(others, key=lambda other: other != name)  # its namesake first; used at once
            twin = next((others[other] for other in likely if equal_bits(tensor, others[other])), None)
            if twin is None:
                own.append((key, name, tensor))
            elif twin.data_ptr() != tensor.data_ptr():
                freed += tensor.nbytes
                tensor.data = twin.data
        for key, name, tensor in own:
            kept.setdefault(key, {}).setdefault(name, tensor)
    return freed


def _shareable(model: Any) -> dict[str, Tensor]:
    """The tensors of a model that another may use, a tied one once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        plain = type(tensor) in (torch.nn.Parameter, Tensor)
        if plain and not tensor.is_meta and not tensor.requires_grad and tensor.nbytes:
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _sample(tensor: Tensor) -> bytes:
    """Some of a tensor's bytes, spread over it, to tell most tensors apart without reading them."""
    flat = tensor.detach().reshape(-1)
    return bytes(_bits(flat[:: max(1, flat.numel() // 64)]).cpu().numpy().tobytes())


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype and shape hold the same bits, read chunk by chunk until they differ."""
    left, right = a.detach().reshape(-1), b.detach().reshape(-1)
    return all(
        torch.equal(_bits(left[start : start + _CHUNK]), _bits(right[start : start + _CHUNK]))
        for start in range(0, left.numel(), _CHUNK)
    )


def held_bytes(models: Sequence[Any]) -> tuple[int, int]:
    """(bytes of all parameters and buffers in memory, those of them that a later model has from an earlier one)."""
    held: dict[tuple[torch.device, int], int] = {}
    shared = 0
    for model in models:
        own = {
            (tensor.device, tensor.data_ptr()): tensor.nbytes
            for tensor in [*model.parameters(), *model.buffers()]
            if not tensor.is_meta
        }
        shared += sum(size for place, size in own.items() if place in held and size)
        held.update(own)
    return sum(held.values()), shared


# A trunk in common -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CommonTrunk:
    """What two models compute alike, from the token ids on.

    layers: how many leading layers, of how many. parameters: theirs, with what runs before them (the embedding).
    share: of the larger model's parameters.
    layer_bytes: of the layers' weights, which a step on both models reads once instead of twice.
    cache_bytes_per_token: of the layers' keys and values, which are kept once where both models see the same prompt;
    None if unknown.
    """

    layers: int
    of: int
    parameters: int
    share: float
    layer_bytes: int
    cache_bytes_per_token: int | None


# What configurations may differ in without a difference in what a layer computes.
_NAMES_ONLY = {
    *("architectures", "dtype", "name_or_path", "_name_or_path", "tie_word_embeddings", "torch_dtype"),
    *("transformers_version", "use_cache", "vocab_size"),
}


def common_trunk(base: Any, aligned: Any) -> CommonTrunk | None:
    """The leading layers of two models that do the same to the same ids, or None if the first one does not.

    Layers and all that runs before them are equal to the bit, of the same classes, under configurations that differ in
    names only. Of the embedding, the rows that both have must be equal: one model may know more ids. The last layer
    never counts, so that something is left of each model.
    """
    stacks = decoder_layers(base), decoder_layers(aligned)
    if stacks[0] is None or stacks[1] is None or not _same_kind(base, aligned):
        return None
    ours, theirs = list(stacks[0]), list(stacks[1])
    equal = 0
    while equal < len(ours) - 1 and _same_module(ours[equal], theirs[equal]):
        equal += 1
    if not equal:
        return None
    before = _before(base, ours[:equal])
    embeddings = base.get_input_embeddings(), aligned.get_input_embeddings()
    for name in before:
        mine, other = base.get_submodule(name), aligned.get_submodule(name)
        rows = min(e.weight.shape[0] for e in embeddings) if mine is embeddings[0] else None
        if not _same_module(mine, other, deep=False, rows=rows):
            return None
    layers = [tensor for layer in ours[:equal] for tensor in layer.parameters()]
    more = [p for name in before for p in base.get_submodule(name).parameters(recurse=False)]
    parameters = sum(tensor.numel() for tensor in layers + more)
    whole = max(sum(p.numel() for p in model.parameters()) for model in (base, aligned))
    cached = kv_bytes_per_token(base)
    return CommonTrunk(
        layers=equal,
        of=len(ours),
        parameters=parameters,
        share=parameters / whole,
        layer_bytes=sum(tensor.nbytes for tensor in layers),
        cache_bytes_per_token=None if cached is None else cached * equal // len(ours),
    )


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The layers of a model's body in the order in which they run; None where they cannot be told."""
    body, depth = model.base_model, getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = [part for part in body.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    return stacks[0] if len(stacks) == 1 and body is not model else None


def _same_kind(base: Any, aligned: Any) -> bool:
    """Whether two models are of one class, dtype, device and configuration, and all in memory as they are."""
    configs = [
        {
            key: value
            for key, value in model.config.get_text_config().to_dict().items()
            if key not in _NAMES_ONLY and not key.endswith("_token_id")
        }
        for model in (base, aligned)
    ]
    hooked = any(hasattr(part, "_hf_hook") for model in (base, aligned) for part in model.modules())
    attention = [model.config.get_text_config()._attn_implementation for model in (base, aligned)]
    return (
        type(base) is type(aligned)
        and configs[0] == configs[1]
        and attention[0] == attention[1]
        and not hooked
        and {part for part, _ in base.named_modules()} == {part for part, _ in aligned.named_modules()}
    )


def _same_module(a: nn.Module, b: nn.Module, *, deep: bool = True, rows: int | None = None) -> bool:
    """Whether two modules are of the same classes and hold the same bits.

    deep: with all that is in them. rows: compare only that many rows of each tensor.
    """
    if deep and [type(part) for part in a.modules()] != [type(part) for part in b.modules()]:
        return False
    ours, theirs = (
        dict([*part.named_parameters(recurse=deep), *part.named_buffers(recurse=deep)]) for part in (a, b)
    )
    return (
        type(a) is type(b)
        and ours.keys() == theirs.keys()
        and all(_same_tensor(ours[name], theirs[name], rows) for name in ours)
    )


def _same_tensor(a: Tensor, b: Tensor, rows: int | None) -> bool:
    plain = all(type(tensor) in (nn.Parameter, Tensor) and not tensor.is_meta for tensor in (a, b))
    if rows is not None and a.dim():
        a, b = a[:rows], b[:rows]
    if not plain or a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or equal_bits(a, b)


@torch.inference_mode()
def _before(model: Any, layers: Sequence[nn.Module]) -> list[str]:
    """Names of the modules outside the stack of layers that run before the last of `layers` is done.

    Those that are never called count too: it is not known when their tensors are used.
    """
    inside = {id(part) for layer in decoder_layers(model) or () for part in layer.modules()}
    watched = {name: part for name, part in model.named_modules() if id(part) not in inside}
    called: list[nn.Module] = []

    def note(module: nn.Module, *_: Any) -> None:
        called.append(module)

    hooks = [part.register_forward_pre_hook(note) for part in watched.values()]
    hooks.append(layers[-1].register_forward_hook(note))
    try:
        ids = torch.tensor([[0, 1]], device=model.device)
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    end = called.index(layers[-1]) if layers[-1] in called else len(called)
    after = {id(part) for part in called[end:]} - {id(part) for part in called[:end]}
    return [name for name, part in watched.items() if id(part) not in after]


# Cost ------------------------------------------------------------------------------------------------------------


def weights_bytes(model: Any) -> int:
    """Bytes of parameters and buffers, tied ones counted once."""
    held = {id(tensor): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
    return sum(held.values())


def kv_bytes_per_token(model: Any) -> int | None:
    """Bytes that one token takes in the keys and values of all layers, in the model's dtype; None if unknown."""
    return cache_bytes_per_token(model.config, model.dtype)
