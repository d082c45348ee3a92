"""Linear layers of one input as one product on a GPU, their weights joined in place.

The parameters of the model become views of the joined tensor, so that nothing is held twice and the model works as
before.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eddecode_kernels import layers_triton as kernels
from eddecode_kernels.decoder_layer import LinearWeights


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


_known_joins: weakref.WeakValueDictionary[Any, Tensor] = weakref.WeakValueDictionary()


def joined(linears: Sequence[LinearWeights]) -> JoinedLinear:
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
