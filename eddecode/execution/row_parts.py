"""The states of texts that were read one after another in one row: parts of the row's buffers, not copies.

A batch of prompts has thousands of such parts, one per text, layer and keys or values, and a view of each takes Python
longer than a GPU takes to copy it. So a part is a beginning and an end; views are made where somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

States = tuple[Tensor, Tensor]  # keys and values of a layer, (heads, length, head_dim) each
Table = NDArray[np.int64]
ADDRESS, SLOT, POSITION, HEAD, HEADS = range(5)  # columns of `places`


def places(buffers: Sequence[Tensor]) -> Table:
    """(n, 5) of buffers (slots, heads, capacity, head_dim): address, bytes of a slot, numbers of a position and of a
    head, and heads."""
    return np.array(
        [
            (b.data_ptr(), b.stride(0) * b.element_size(), b.shape[3], b.stride(1), b.shape[1])
            for b in buffers
        ],
        dtype=np.int64,
    )


@dataclass(frozen=True, eq=False)
class PackedRow:
    """The buffers of the row that the texts were read in, keys and values of each layer in turn: (1, heads, …) each."""

    buffers: Sequence[Tensor]

    @cached_property
    def places(self) -> Table:
        """See `places`."""
        return places(self.buffers)

    @cached_property
    def bytes_per_position(self) -> int:
        """Of all layers."""
        return sum(b.shape[1] * b.shape[3] * b.element_size() for b in self.buffers)


@dataclass(frozen=True, eq=False)
class RowPart(Sequence[States]):
    """The positions start … stop−1 of a packed row; as a sequence, the states of each layer."""

    row: PackedRow
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the states."""
        return (self.stop - self.start) * self.row.bytes_per_position

    def __len__(self) -> int:
        return len(self.row.buffers) // 2

    @overload
    def __getitem__(self, layer: int) -> States: ...
    @overload
    def __getitem__(self, layer: slice) -> list[States]: ...
    def __getitem__(self, layer: int | slice) -> States | list[States]:
        if isinstance(layer, slice):
            return [self[i] for i in range(*layer.indices(len(self)))]
        keys, values = (b[0, :, self.start : self.stop] for b in self.row.buffers[2 * layer : 2 * layer + 2])
        return keys, values

    def __iter__(self) -> Iterator[States]:
        return (self[layer] for layer in range(len(self)))


def copy_table(parts: Sequence[RowPart], targets: Table, first_slot: int, itemsize: int) -> Table:
    """(n, 6) for `eddecode_kernels.layers_triton.copy_blocks`: parts to slots from `first_slot` on.

    Args:
        parts: of any packed rows.
        targets: `places` of the buffers that are written.
        first_slot: of the first part.
        itemsize: bytes of a number.
    """
    spans = np.array([(part.start, part.stop - part.start) for part in parts], dtype=np.int64)
    # (buffers, 1) or (rows, buffers, 1): where they come from
    sources = np.stack([part.row.places for part in parts])
    slots = first_slot + np.arange(len(parts), dtype=np.int64)
    table = np.empty((len(parts), len(targets), 6), dtype=np.int64)
    table[..., 0] = sources[..., ADDRESS] + spans[:, :1] * sources[..., POSITION] * itemsize
    table[..., 1] = targets[:, ADDRESS] + slots[:, None] * targets[:, SLOT]
    table[..., 2] = spans[:, 1:] * targets[:, POSITION]
    table[..., 3] = sources[..., HEAD]
    table[..., 4] = targets[:, HEAD]
    table[..., 5] = targets[:, HEADS]
    return table.reshape(-1, 6)


def move_table(buffers: Table, source: int, target: int, length: int) -> Table:
    """(n, 6) for `eddecode_kernels.layers_triton.copy_blocks`: the first positions of a slot to another one.

    Args:
        buffers: their `places`.
        source, target: slots.
        length: positions.
    """
    table = np.empty((len(buffers), 6), dtype=np.int64)
    table[:, 0] = buffers[:, ADDRESS] + source * buffers[:, SLOT]
    table[:, 1] = buffers[:, ADDRESS] + target * buffers[:, SLOT]
    table[:, 2] = length * buffers[:, POSITION]
    table[:, 3] = table[:, 4] = buffers[:, HEAD]
    table[:, 5] = buffers[:, HEADS]
    return table
