"""A pair whose aligned model is replaced by base + l·(aligned − base), the task vector added or subtracted.

Task arithmetic (Ilharco et al., arXiv 2212.04089) negates a task vector to undo what training added. The sum is made
tensor by tensor, in float32, and takes the place of the aligned model, so that the base still says how likely the
completions are: nothing is in memory beside the pair but one tensor.
"""

from __future__ import annotations

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
        tensor.data = _merged(name, base[name].detach(), tensor.detach(), scale)
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


def _merged(name: str, base: Tensor, aligned: Tensor, scale: float) -> Tensor:
    """The sum, in the base's dtype and where the aligned tensor is; rows that this one alone has stay its own."""
    if base.is_meta or aligned.is_meta:
        raise PairError(
            f"the tensor {name} is offloaded, and cannot be merged; use a device with more memory"
        )
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
