"""The leading layers of two models whose weights are identical to the bit: what the alignment left frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from eddecode.models.sizes import kv_bytes_per_token
from eddecode.models.tensor_bytes import equal_bits


@dataclass(frozen=True)
class CommonLayers:
    """The leading layers that two models have in common, counted from the embedding.

    Attributes:
        layers, of: how many leading layers are identical, of how many.
        parameters: of these layers and of the embeddings (of tokens, and of positions if learned).
        share: `parameters` as a fraction of the larger model's.
        layer_bytes: bytes of these layers' weights.
        cache_bytes_per_token: bytes that one token takes in these layers' keys and values; None if unknown.
    """

    layers: int
    of: int
    parameters: int
    share: float
    layer_bytes: int
    cache_bytes_per_token: int | None


def common_layers(base: Any, aligned: Any) -> CommonLayers | None:
    """The identical leading layers of two models; None where an embedding or the first layer differs.

    Of the token embedding, the rows that both models have are compared: one model may know more ids. Weights that are
    not in memory (offloaded) or in a quantized type of their own count as different.
    """
    stack, other_stack = decoder_layers(base), decoder_layers(aligned)
    if stack is None or other_stack is None or not _embeddings_are_identical(base, aligned):
        return None
    equal = 0
    for ours, theirs in zip(stack, other_stack, strict=False):
        if not _are_identical(ours, theirs):
            break
        equal += 1
    if not equal:
        return None
    layers = [tensor for layer in stack[:equal] for tensor in layer.parameters()]
    parameters = sum(tensor.numel() for tensor in [*_embeddings(base).values(), *layers])
    largest = max(sum(p.numel() for p in model.parameters()) for model in (base, aligned))
    cached = kv_bytes_per_token(base)
    return CommonLayers(
        layers=equal,
        of=len(stack),
        parameters=parameters,
        share=parameters / largest,
        layer_bytes=sum(tensor.nbytes for tensor in layers),
        cache_bytes_per_token=None if cached is None else cached * equal // len(stack),
    )


def _embeddings(model: Any) -> dict[str, Tensor]:
    """The weights of the body's embeddings: of the tokens, and of the positions where a model has those."""
    modules = model.base_model.named_modules()
    return {name: module.weight for name, module in modules if isinstance(module, nn.Embedding)}


def _embeddings_are_identical(base: Any, aligned: Any) -> bool:
    ours, theirs = _embeddings(base), _embeddings(aligned)
    if not ours or ours.keys() != theirs.keys():
        return False
    rows = {name: min(len(ours[name]), len(theirs[name])) for name in ours}
    return all(_is_identical(ours[name][: rows[name]], theirs[name][: rows[name]]) for name in ours)


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The layers of a model's body in the order in which they run; None where they cannot be identified."""
    body, depth = model.base_model, getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = [part for part in body.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    return stacks[0] if len(stacks) == 1 and body is not model else None


def _are_identical(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules have the same tensors, by name, shape, dtype and bits."""
    ours, theirs = a.state_dict(keep_vars=True), b.state_dict(keep_vars=True)
    return ours.keys() == theirs.keys() and all(_is_identical(ours[name], theirs[name]) for name in ours)


def _is_identical(a: Tensor, b: Tensor) -> bool:
    if any(type(tensor) not in (nn.Parameter, Tensor) or tensor.is_meta for tensor in (a, b)):
        return False
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or equal_bits(a, b)
