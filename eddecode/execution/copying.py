"""Copies of keys and values between rows, all of them in one launch on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eddecode.utils.device import copy_to_device
from eddecode_kernels import layers_triton, triton_trial


def copy_heads(copies: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy (from, to) pairs of states (heads, length, head_dim), whose two innermost axes are contiguous.

    A row of a large model has thousands of them, and a launch for each takes longer than the copying.
    """
    if not copies:
        return
    first = copies[0][0]
    if not _in_one_launch(copies):
        for source, target in copies:
            target.copy_(source)
        return
    table = torch.tensor(
        [
            (
                source.data_ptr(), target.data_ptr(), source.shape[1] * source.shape[2],
                source.stride(0), target.stride(0), source.shape[0],
            )
            for source, target in copies
        ]
    )  # fmt: skip
    heads = table[:, 5]
    head = torch.arange(int(heads.sum())) - (heads.cumsum(0) - heads).repeat_interleave(heads)
    table = table.repeat_interleave(heads, 0)
    size = first.element_size()
    table[:, 0] += head * table[:, 3] * size
    table[:, 1] += head * table[:, 4] * size
    stretches = table[:, :3].contiguous()
    longest = int(stretches[:, 2].max())
    torch.ops.eddecode.copy_blocks(copy_to_device(stretches, first.device), longest, size)


def _in_one_launch(copies: Sequence[tuple[Tensor, Tensor]]) -> bool:
    first = copies[0][0]
    return (
        first.element_size() in (2, 4)
        and layers_triton.available(first.device, torch.float32)
        and triton_trial.failure(first.device, torch.float32) is None
        and all(_is_plain(source, first) and _is_plain(target, first) for source, target in copies)
    )


def _is_plain(states: Tensor, like: Tensor) -> bool:
    inner = states.shape[2] if states.shape[1] > 1 else states.stride(1)
    return (
        states.dtype == like.dtype
        and states.device == like.device
        and states.stride(2) == 1
        and states.stride(1) == inner
    )
