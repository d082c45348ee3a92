"""The leading layers that two models have in common, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eddecode.models.sizes import kv_bytes_per_token
from eddecode.models.weight_sharing import equal_bits


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
