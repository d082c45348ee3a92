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
    rows = [
        (
            source.data_ptr(), target.data_ptr(), source.shape[1] * source.shape[2],
            source.stride(0), target.stride(0), source.shape[0],
        )
        for source, target in copies
    ]  # fmt: skip
    _launch(rows, first)


def copy_into_slots(buffers: Sequence[Tensor], first_slot: int, rows: Sequence[Sequence[Tensor]]) -> None:
    """Copy rows of states, one (heads, length, head_dim) per buffer, into slots from `first_slot` on.

    Args:
        buffers: (slots, heads, capacity, head_dim).
        first_slot: of the first row.
        rows: per row the states for every buffer.
    """
    if not rows:
        return
    first = buffers[0]
    pairs = [
        (states[i], buffers[i][0, :, : states[i].shape[1]])
        for states in rows[:1]
        for i in range(len(buffers))
    ]
    plain = all(
        state.stride(1) == state.shape[2] or state.shape[1] == 1 for states in rows for state in states
    )
    if not (plain and _in_one_launch(pairs)):
        for slot, states in enumerate(rows, first_slot):
            for buffer, state in zip(buffers, states, strict=True):
                buffer[slot, :, : state.shape[1]] = state
        return
    size = first.element_size()
    places = [(b.data_ptr(), b.stride(0) * size, b.stride(1), b.shape[1], b.shape[3]) for b in buffers]
    table = [
        (state.data_ptr(), base + slot * step, state.shape[1] * width, state.stride(0), head, heads)
        for slot, states in enumerate(rows, first_slot)
        for state, (base, step, head, heads, width) in zip(states, places, strict=True)
    ]
    _launch(table, first)


def _launch(rows: Sequence[tuple[int, ...]], like: Tensor) -> None:
    """Copy (from, to, numbers of a head, numbers between heads from and to, heads), all in one launch."""
    longest, heads = max(row[2] for row in rows), max(row[5] for row in rows)
    table = copy_to_device(torch.tensor(rows), like.device)
    torch.ops.eddecode.copy_blocks(table, heads, longest, like.element_size())


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
