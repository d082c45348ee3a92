"""Replacing the forward pass of modules for the length of a block; and the replacement that every model gets: its head.

The head of a causal LM is run in float32 and only where logits are wanted. An error ε in the logits becomes (1+2α)·ε
in the contrast, and bf16 logits are off by up to 2⁻⁸ of their size: at α=2 that is several tenths of a nat. The last
hidden state has the precision of its dtype, but its product with the head need not be rounded a second time: the
products of bf16 numbers are exact in float32, and are summed there. The head is replaced inside the model's own forward
pass, so that whatever a family does to its logits afterwards (soft-capping in Gemma 2, scaling in Granite) is done by
the family's code, and in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from eddecode.models.tensor_parallel import gather_columns, is_split, is_split_by_rows, local, whole
from eddecode_kernels import layers_triton, triton_trial
from eddecode_kernels.layers_cpu import compiled_linear
from eddecode_kernels.norm_triton import float32_linear
from eddecode_kernels.speed_check import is_faster_than_torch


def triton_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton's products, whose rows do not depend on their batch, run for this device and dtype."""
    return layers_triton.available(device, dtype) and triton_trial.failure(device, dtype) is None


CONVERT_ROWS = 4096  # rows of the head that are converted at a time: the scratch stays within a CPU's cache
_MISSING = object()


@contextmanager
def patched_forward(forwards: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Within the block each module's forward pass is the given function; what was there before is put back at the end.

    accelerate's hooks wrap `forward` and keep the original in `_old_forward`: where there is one, that is what is
    replaced, so that the hooks still run.
    """
    before = []
    for module, forward in forwards.items():
        attributes = vars(module)  # not setattr, which takes long on a module
        name = "_old_forward" if "_old_forward" in attributes else "forward"
        before.append((attributes, name, attributes.get(name, _MISSING)))
        attributes[name] = forward
    try:
        yield
    finally:
        for attributes, name, old in before:
            if old is _MISSING:
                attributes.pop(name, None)
            else:
                attributes[name] = old


def has_hooks(module: Any) -> bool:
    """Whether forward hooks are registered on a module, or something stands in for its forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


class ActiveRows(Protocol):
    """Which rows of the batch in progress have a change; None is none."""

    active: slice | None


class LowRankChange(Protocol):
    """A low-rank change B·A of a linear layer: a (r, in) and b (out, r), for some rows of a batch."""

    @property
    def a(self) -> Tensor:
        """(r, in)."""
        ...

    @property
    def b(self) -> Tensor:
        """(out, r)."""
        ...

    @property
    def rows(self) -> ActiveRows:
        """Which rows have it."""
        ...


class Float32LMHead:
    """The last linear layer of a causal LM, in float32.

    Args:
        model: the causal LM.
        delta: a low-rank change of the layer, which some rows have.
        compiled: whether it may run by a compiled product.

    Attributes:
        is_patchable: whether it can be replaced, so that logits are never rounded to the weights' dtype; false for
            heads that are not a plain linear layer in a floating dtype, such as quantized ones.
    """

    def __init__(self, model: Any, delta: LowRankChange | None = None, *, compiled: bool = True) -> None:
        self._delta, self._may_compile = delta, compiled
        self.linear = model.get_output_embeddings()
        weight = getattr(self.linear, "weight", None)
        plain = isinstance(self.linear, nn.Linear) and weight is not None and weight.is_floating_point()
        known = plain and type(self.linear).forward is nn.Linear.forward
        self._is_split = is_split(weight)  # asked once, since every step uses it
        self.is_patchable = known and (not self._is_split or is_split_by_rows(weight))
        self._scratch: Tensor | None = None
        self._triton: tuple[tuple[torch.device, torch.dtype], bool] | None = None
        self._compiled = (
            None
            if weight is None or not (self.is_patchable and compiled)
            else compiled_linear(local(weight), _local_bias(self.linear), torch.float32)
        )

    @contextmanager
    def selecting(self, positions: Tensor) -> Iterator[None]:
        """Within the block the model's head is run on the hidden states at `positions` (B, K) of each row only."""
        if not self.is_patchable:
            yield
            return
        with patched_forward({self.linear: partial(self.logits_at, positions=positions)}):
            yield

    def select(self, logits: Tensor, positions: Tensor) -> Tensor:
        """The logits at `positions` (B, K) as (B, K, V) float32, also where the head could not be replaced."""
        return (logits if self.is_patchable else _at(whole(logits), positions)).float()

    def logits_at(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """The logits at `positions` (B, K) of hidden states (B, T, d), as (B, K, V) float32."""
        selected = _at(hidden, positions)
        logits = self.project(selected)
        active = None if self._delta is None else self._delta.rows.active
        if self._delta is not None and active is not None:
            low_rank = F.linear(selected[active].float(), self._delta.a.float())
            logits[active] += F.linear(low_rank, self._delta.b.float())
        return logits

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, K, d) of any float dtype to logits (B, K, V) float32."""
        weight = self.linear.weight
        if not self._is_split:
            return self._project(hidden, weight, self.linear.bias)
        return gather_columns(self._project(hidden, local(weight), _local_bias(self.linear)), weight)

    def _project(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As `project`, by the part of the weight that this process holds: (B, K, its rows)."""
        if self._runs_in_triton(weight) and weight.is_contiguous():
            rows = rearrange(hidden.to(weight.dtype), "b k d -> (b k) d").contiguous()
            logits = float32_linear(rows, weight)
            if bias is not None:
                logits += bias.float()
            return rearrange(logits, "(b k) v -> b k v", b=hidden.shape[0])
        if self._compiled is not None and is_faster_than_torch(weight.dtype):
            return self._compiled(hidden.to(weight.dtype))
        bias = None if bias is None else bias.float()
        if self._may_compile and weight.dtype == torch.float32:
            return F.linear(hidden.float(), weight, bias)
        flat = rearrange(hidden, "b k d -> (b k) d")
        # CUDA's product has no float32 result for float64 weights.
        by_cuda = self._may_compile and weight.is_cuda and weight.dtype != torch.float64
        logits = _mm_cuda(flat, weight) if by_cuda else self._mm_chunked(flat.float(), weight)
        if bias is not None:
            logits += bias
        return rearrange(logits, "(b k) v -> b k v", b=hidden.shape[0])

    def _runs_in_triton(self, weight: Tensor) -> bool:
        """Asked once per device and dtype, since every step asks."""
        kind = weight.device, weight.dtype
        if self._triton is None or self._triton[0] != kind:
            self._triton = kind, self._may_compile and triton_runs(*kind)
        return self._triton[1]

    def _mm_chunked(self, flat: Tensor, weight: Tensor) -> Tensor:
        """(n, d) float32 times a low-precision head (V, d), converted block by block in one reused scratch."""
        if self._scratch is None:
            self._scratch = weight.new_empty(
                min(CONVERT_ROWS, weight.shape[0]), weight.shape[1], dtype=torch.float32
            )
        logits = flat.new_empty(flat.shape[0], weight.shape[0])
        for start in range(0, weight.shape[0], CONVERT_ROWS):
            rows = weight[start : start + CONVERT_ROWS]
            block = self._scratch[: rows.shape[0]].copy_(rows)
            torch.mm(flat, block.T, out=logits[:, start : start + CONVERT_ROWS])
        return logits


def _local_bias(linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else local(linear.bias)


def _mm_cuda(flat: Tensor, weight: Tensor) -> Tensor:
    """(n, d) times (V, d)ᵀ in the weights' dtype, accumulated and returned in float32 by the GPU's own matmul."""
    return torch.mm(flat.to(weight.dtype), weight.T, out_dtype=torch.float32)


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """Values (B, T, d) at `positions` (B, K): (B, K, d). A pass over one token per row needs no gathering."""
    if values.shape[1] == 1:
        return values
    index = positions.to(values.device)[:, :, None]
    return values.take_along_dim(index, dim=1)
