"""A pair whose aligned model is replaced by other weights between, or beyond, the two models.

base + l·(aligned − base) adds or subtracts the task vector; the aligned model without the top singular directions of
aligned − base takes away the part of low rank in which most of an alignment may lie.

Task arithmetic (Ilharco et al., arXiv 2212.04089) negates a task vector to undo what training added. The sum is made
tensor by tensor, in float32, and takes the place of the aligned model, so that the base still says how likely the
completions are: nothing is in memory beside the pair but one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eddecode.errors import PairError

if TYPE_CHECKING:
    from eddecode.models.pair import ModelPair

_BLOCK = 1 << 24  # elements that are held in float32 at a time


def merge_task_vector(pair: ModelPair, scale: float) -> None:
    """Replace the aligned model of a pair by base + scale·(aligned − base), in float32, rounded to the base's dtype.

    Where one model has more rows of embeddings (added tokens), the rows that both have are merged.

    Args:
        pair: just loaded; nothing was decoded with it.
        scale: l.

    Raises:
        PairError: the weights are quantized, offloaded, or not the same tensors in both models. The pair is then of no
            use.
    """
    _replace(pair, lambda name, base, aligned: _merged(base, aligned, scale))


def remove_top_directions(pair: ModelPair, rank: int) -> None:
    """Take the top singular directions of every matrix of aligned − base out of the aligned model of a pair.

    LoX (Perin et al., arXiv 2506.15606) extrapolates along these directions, to make an alignment last; here they are
    removed. Vectors and embeddings stay the aligned model's. The decomposition is exact, in float32.

    Args:
        pair: just loaded; nothing was decoded with it.
        rank: number of directions of each matrix.

    Raises:
        PairError: as `merge_task_vector`.
    """
    heads = (pair.aligned.get_input_embeddings(), pair.aligned.get_output_embeddings())
    kept = {head.weight.data_ptr() for head in heads}

    def without(name: str, base: Tensor, aligned: Tensor) -> Tensor:
        if aligned.dim() < 2 or aligned.data_ptr() in kept or base.shape != aligned.shape:
            return aligned.to(base.dtype, copy=True)
        start = base.to(aligned.device, torch.float32)
        left, sizes, right = torch.linalg.svd(aligned.float() - start, full_matrices=False)
        top = (left[..., :rank] * sizes[..., None, :rank]) @ right[..., :rank, :]
        rest: Tensor = aligned.float() - top
        return rest.to(base.dtype)

    _replace(pair, without)


def _replace(pair: ModelPair, new: Callable[[str, Tensor, Tensor], Tensor]) -> None:
    """Replace every tensor of the aligned model by new(name, base's tensor, its own)."""
    models = dict(zip(("base", "aligned"), pair.models, strict=True))
    for side, model in models.items():
        if getattr(model, "is_quantized", False):
            raise PairError(
                f"the {side} model is quantized, and its weights cannot be added; load it in bfloat16"
            )
    base, aligned = (_tensors(model) for model in pair.models)
    lone = sorted(base.keys() ^ aligned.keys())
    if lone:
        raise PairError(
            f"the two models do not have the same tensors: {', '.join(lone[:3])} is in one of them only; weights can "
            "be merged only where both have all (tied embeddings in both or in neither)"
        )
    heads = (pair.aligned.get_input_embeddings(), pair.aligned.get_output_embeddings())
    embeddings = {id(head.weight) for head in heads}
    done: set[int] = set()
    for name, tensor in aligned.items():
        if id(tensor) in done:  # a tied tensor has two names
            continue
        done.add(id(tensor))
        if tensor.shape != base[name].shape:
            _check_shapes(name, base[name], tensor, id(tensor) in embeddings)
        if base[name].is_meta or tensor.is_meta:
            raise PairError(
                f"the tensor {name} is offloaded, and cannot be merged; use a device with more memory"
            )
        tensor.data = new(name, base[name].detach(), tensor.detach())
    pair.checkpoints = None  # digests are those of the weights in memory
    if hasattr(pair.aligned, "low_rank_factors"):  # aligned = base + B·A no longer holds
        del pair.aligned.low_rank_factors


def _tensors(model: Any) -> dict[str, Tensor]:
    """The tensors of a model with floating-point numbers; a tied one under each of its names."""
    found = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}


def _check_shapes(name: str, base: Tensor, aligned: Tensor, is_embedding: bool) -> None:
    """Only the embeddings may differ, in their rows: added tokens."""
    if not is_embedding or base.shape[1:] != aligned.shape[1:]:
        raise PairError(
            f"the tensor {name} is {list(base.shape)} in the base and {list(aligned.shape)} in the aligned model; "
            "weights can be merged only where the architectures are the same"
        )


def _merged(base: Tensor, aligned: Tensor, scale: float) -> Tensor:
    """The sum, in the base's dtype and where the aligned tensor is; rows that this one alone has stay its own."""
    if base.dim() == 0:
        return _sum(base, aligned, scale)
    # Not in place: a tensor that both models have to the bit is held once.
    result = aligned.to(base.dtype, copy=True)
    step = max(1, _BLOCK // max(1, base[0].numel()))
    for start in range(0, min(base.shape[0], aligned.shape[0]), step):
        block = slice(start, min(start + step, base.shape[0], aligned.shape[0]))
        result[block] = _sum(base[block], aligned[block], scale)
    return result


def _sum(base: Tensor, aligned: Tensor, scale: float) -> Tensor:
    start = base.to(aligned.device, torch.float32)
    return (start + scale * (aligned.float() - start)).to(base.dtype)
