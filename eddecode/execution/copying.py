"""Copies of keys and values between rows, all of them in one launch on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eddecode.execution.patching import triton_runs
from eddecode.execution.row_parts import RowPart, copy_table, move_table, places
from eddecode.utils.device import copy_to_device

WIDE = 16  # bytes that a thread moves at once


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
    rows = [
        (
            source.data_ptr(), target.data_ptr(), source.shape[1] * source.shape[2],
            source.stride(0), target.stride(0), source.shape[0],
        )
        for source, target in copies
    ]  # fmt: skip
    _launch(torch.tensor(rows), first)


def copy_into_slots(
    buffers: Sequence[Tensor], first_slot: int, rows: Sequence[Sequence[tuple[Tensor, Tensor]]]
) -> None:
    """Copy rows of states, per layer keys and values (heads, length, head_dim), into slots from `first_slot` on.

    Args:
        buffers: (slots, heads, capacity, head_dim), keys and values of each layer in turn.
        first_slot: of the first row.
        rows: the states of each row.
    """
    parts = [row for row in rows if isinstance(row, RowPart)]
    if len(parts) == len(rows) and rows and _in_one_launch([(b[0], b[0]) for b in parts[0].row.buffers]):
        itemsize = buffers[0].element_size()
        _launch(torch.from_numpy(copy_table(parts, places(buffers), first_slot, itemsize)), buffers[0])
        return
    copy_heads(
        [
            (state, buffer[slot, :, : state.shape[1]])
            for slot, row in enumerate(rows, first_slot)
            for buffer, state in zip(buffers, (each for pair in row for each in pair), strict=True)
        ]
    )


def move_slot(buffers: Sequence[Tensor], source: int, target: int, length: int) -> None:
    """Copy the first positions of a slot to another one: keys and values of each layer in turn, contiguous.

    Not by views of each: making these takes longer than the copying, and the device waits meanwhile.
    """
    if not buffers:
        return
    first = buffers[0]
    alike = all(b.dtype == first.dtype and b.device == first.device and b.is_contiguous() for b in buffers)
    if alike and triton_runs(first.device, first.dtype):
        _launch(torch.from_numpy(move_table(places(buffers), source, target, length)), first)
        return
    for buffer in buffers:
        buffer[target, :, :length] = buffer[source, :, :length]


def _launch(table: Tensor, like: Tensor) -> None:
    """Copy (from, to, numbers of a head, numbers between heads from and to, heads), all in one launch."""
    table, itemsize = widest(table, like.element_size())
    longest, heads = int(table[:, 2].max()), int(table[:, 5].max())
    torch.ops.eddecode.copy_blocks(copy_to_device(table, like.device), heads, longest, itemsize)


def widest(table: Tensor, itemsize: int) -> tuple[Tensor, int]:
    """A table of copies with numbers of 16 bytes in the place of smaller ones where all of it divides by that."""
    numbers = table[:, 2:5] * itemsize
    if (table[:, :2] % WIDE).any() or (numbers % WIDE).any():
        return table, itemsize
    return torch.cat([table[:, :2], numbers // WIDE, table[:, 5:]], dim=1), WIDE


def _in_one_launch(copies: Sequence[tuple[Tensor, Tensor]]) -> bool:
    first = copies[0][0]
    return triton_runs(first.device, first.dtype) and all(
        _is_plain(source, first) and _is_plain(target, first) for source, target in copies
    )


def _is_plain(states: Tensor, like: Tensor) -> bool:
    inner = states.shape[2] if states.shape[1] > 1 else states.stride(1)
    return (
        states.dtype == like.dtype
        and states.device == like.device
        and states.stride(2) == 1
        and states.stride(1) == inner
    )
