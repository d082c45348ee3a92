"""A pair whose aligned model is replaced by other weights between, or beyond, the two models.

base + l·(aligned − base) adds or subtracts the task vector; the aligned model without the top singular directions of
aligned − base takes away the part of low rank in which most of an alignment may lie.

Task arithmetic (Ilharco et al., arXiv 2212.04089) negates a task vector to undo what training added. The sum is made
tensor by tensor, in float32, and takes the place of the aligned model, so that the base still says how likely the
completions are. Both models are read from their files where those have the tensor (`stored_weights`), so that nothing
is in memory beside the pair but one tensor: docs/attacks.md has the measured peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eddecode.errors import PairError
from eddecode.models.stored_weights import Rows, StoredWeights
from eddecode.models.tensor_parallel import is_split, local, split_like, whole
from eddecode.utils.memory import trim_heap, zeros_lazy

if TYPE_CHECKING:
    from eddecode.models.pair import ModelPair

_BLOCK = 1 << 20  # elements that are held in float32 at a time


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
    heads = _head_weights(pair.aligned)
    kept = {name for name, tensor in _tensors(pair.aligned).items() if id(tensor) in heads}

    def without(name: str, base: Rows, aligned: Rows) -> Tensor:
        if len(aligned.shape) < 2 or name in kept or base.shape != aligned.shape:
            return aligned.whole().to(base.dtype, copy=True)
        start, end = base.whole().to(aligned.device, torch.float32), aligned.whole().float()
        left, sizes, right = torch.linalg.svd(end - start, full_matrices=False)
        top = (left[..., :rank] * sizes[..., None, :rank]) @ right[..., :rank, :]
        rest: Tensor = end - top
        return rest.to(base.dtype)

    _replace(pair, without, of_parts=False)


_New = Callable[[str, Rows, Rows], Tensor]
"""Of a name, the base's tensor and the aligned model's: the tensor in the latter's place."""


def _replace(pair: ModelPair, new: _New, of_parts: bool = True) -> None:
    """Replace every tensor of the aligned model.

    of_parts: whether a part of the new tensor is made of the same parts of the two, where each of several processes
    holds a part.
    """
    _check_not_quantized(pair)
    base, aligned = (_tensors(model) for model in pair.models)
    _check_tensors(base, aligned, _head_weights(pair.aligned))
    files = [StoredWeights(checkpoint) for checkpoint in pair.checkpoints or (None, None)]
    found: dict[int, tuple[str, Tensor, Rows, Rows]] = {}
    seen: set[int] = set()  # a tied tensor has two names
    for name, tensor in aligned.items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if is_split(tensor):
            _replace_part(name, base[name].detach(), tensor.detach(), new, of_parts)
            continue
        rows = _sources(files, name, base[name].detach(), tensor.detach())
        is_same = base[name].data_ptr() == tensor.data_ptr() and not any(one.is_rounded for one in rows)
        if is_same:  # held once, and so is what takes its place
            continue
        found[id(tensor)] = (name, tensor, *rows)
        if rows[1].is_stored:
            tensor.data = tensor.new_empty(0)  # so that the mapped file is let go before its place is filled
    for name, tensor, start, end in found.values():
        tensor.data = new(name, start, end)
        trim_heap()  # the C library keeps what was needed in between, in pieces that do not fit the next tensor
    pair.checkpoints = None  # digests are those of the weights in memory
    if hasattr(pair.aligned, "low_rank_factors"):  # aligned = base + B·A no longer holds
        del pair.aligned.low_rank_factors


def _sources(files: Sequence[StoredWeights], name: str, base: Tensor, aligned: Tensor) -> tuple[Rows, Rows]:
    """Where the tensor of both models is read: both in files or both in memory, so that they are rounded alike."""
    start, end = files[0].rows(name, base), files[1].rows(name, aligned)
    return (start, end) if start.is_stored and end.is_stored else (Rows(base), Rows(aligned))


def _replace_part(name: str, base: Tensor, aligned: Any, new: _New, of_parts: bool) -> None:
    """Replace the part of a tensor that this process holds; both are read in memory."""
    split_alike = is_split(base) and base.placements == aligned.placements  # type: ignore[attr-defined]
    if not split_alike or base.dtype != aligned.dtype:
        raise PairError(
            f"the tensor {name} is not split alike in both models, or not of one dtype; over several processes weights "
            "can be merged only where both are (--dtype)"
        )
    if (
        of_parts and base.shape == aligned.shape
    ):  # else rows lie in other processes than those of the other model
        made = new(name, Rows(local(base)), Rows(local(aligned)))
    else:
        made = local(split_like(new(name, Rows(whole(base)), Rows(whole(aligned))), aligned))
    local(aligned).copy_(made)


def _check_not_quantized(pair: ModelPair) -> None:
    for side, model in zip(("base", "aligned"), pair.models, strict=True):
        if getattr(model, "is_quantized", False):
            raise PairError(
                f"the {side} model is quantized, and its weights cannot be added; load it in bfloat16"
            )


def _check_tensors(base: dict[str, Tensor], aligned: dict[str, Tensor], heads: set[int]) -> None:
    """Refuse models whose tensors cannot be added. heads: ids of the embeddings, which may differ in their rows."""
    lone = sorted(base.keys() ^ aligned.keys())
    if lone:
        raise PairError(
            f"the two models do not have the same tensors: {', '.join(lone[:3])} is in one of them only; weights can "
            "be merged only where both have all (tied embeddings in both or in neither)"
        )
    first: dict[int, str] = {}  # name under which a tensor is met first
    for name, tensor in aligned.items():
        start, other = base[name], first.setdefault(id(tensor), name)
        if start is not base[other]:
            raise PairError(
                f"the tensors {other} and {name} are one in the aligned model and two in the base; weights can be "
                "merged only where what the aligned model ties is tied in the base"
            )
        if start.shape != tensor.shape and (id(tensor) not in heads or start.shape[1:] != tensor.shape[1:]):
            raise PairError(
                f"the tensor {name} is {list(start.shape)} in the base and {list(tensor.shape)} in the aligned model; "
                "weights can be merged only where the architectures are the same"
            )
        if start.is_meta or tensor.is_meta:
            raise PairError(
                f"the tensor {name} is offloaded, and cannot be merged; use a device with more memory"
            )


def _head_weights(model: Any) -> set[int]:
    """Ids of the embeddings and of the output head."""
    return {id(head.weight) for head in (model.get_input_embeddings(), model.get_output_embeddings())}


def _tensors(model: Any) -> dict[str, Tensor]:
    """The tensors of a model with floating-point numbers; a tied one under each of its names."""
    found = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}


def _merged(base: Rows, aligned: Rows, scale: float) -> Tensor:
    """The sum, in the base's dtype and where the aligned tensor is; rows that this one alone has stay its own."""
    if not aligned.shape:
        return _sum(base.whole(), aligned.whole(), scale).to(base.dtype)
    count, common = aligned.shape[0], min(base.shape[0], aligned.shape[0])
    result = zeros_lazy(torch.empty(0, dtype=base.dtype, device=aligned.device), *aligned.shape)
    step = max(1, _BLOCK // max(1, math.prod(aligned.shape[1:])))
    for start in range(0, common, step):
        block = slice(start, min(start + step, common))
        result[block] = _sum(base[block], aligned[block], scale)
    if common < count:
        result[common:] = aligned[slice(common, count)]
    return result


def _sum(base: Tensor, aligned: Tensor, scale: float) -> Tensor:
    start = base.to(aligned.device, torch.float32)
    return (aligned.float() - start).mul_(scale).add_(start)
