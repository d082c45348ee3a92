"""The keys and values of two models that have their leading layers in common.

Those of the common layers are in one cache, a row for both models where they have read the same, and one for each where
they have not. Those of the layers that follow are in a cache per model, a row per slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Tensor

from eddecode.cache import SlotCache, SlotLayer, Window

BASE, ALIGNED = 0, 1
ONLY_BASE, BOTH, ONLY_ALIGNED = range(3)  # whose rows


class TrunkCache(SlotCache):
    """Keys and values of the trunk.

    Attributes:
        parts: the rows in order, by the slot that each belongs to: those of the base alone, of both models, of the
            aligned model alone. So what each model reads is an unbroken range of rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: tuple[list[int], list[int], list[int]] = ([], [], [])

    def rows_of(self, model: int) -> slice:
        """The rows that a model reads."""
        alone, both, _ = map(len, self.parts)
        return slice(0, alone + both) if model == BASE else slice(alone, len(self.lengths))

    def slots_of(self, rows: slice = slice(None)) -> list[int]:
        """The slot that each of these rows belongs to."""
        return list(chain(*self.parts))[rows]

    def open(self, new: int, slots: slice = slice(None)) -> Window:
        """See `SlotCache.open`; here a range of rows may end before the last."""
        window = super().open(new, slots)
        window.slots = slice(*slots.indices(len(self.lengths)))
        return window

    def insert(self, part: int, slot: int, states: list[tuple[Tensor, Tensor]]) -> None:
        """Add a row for a slot at the end of a part; the first row of each later part moves behind its last."""
        if not any(self.parts[part + 1 :]):
            self.add(states)
            self.parts[part].append(slot)
            return
        hole, length = len(self.lengths), states[0][0].shape[1]
        self._grow(hole + 1, length)
        self.lengths.append(0)
        for later in reversed(range(part + 1, len(self.parts))):
            if self.parts[later]:
                first = sum(map(len, self.parts[:later]))
                self._move(first, hole)
                self.parts[later].append(self.parts[later].pop(0))
                hole = first
        self._write(hole, length, states)
        self.parts[part].append(slot)

    def discard(self, part: int, slot: int) -> None:
        """Drop a slot's row from a part; the last row of the part, and of each later one, fills the hole before it."""
        rows, start = self.parts[part], sum(map(len, self.parts[:part]))
        hole, last = start + rows.index(slot), start + len(rows) - 1
        self._move(last, hole)
        rows[hole - start] = rows[-1]
        rows.pop()
        for later in range(part + 1, len(self.parts)):
            if self.parts[later]:
                self._move(last + len(self.parts[later]), last)
                self.parts[later].insert(0, self.parts[later].pop())
                last += len(self.parts[later])
        self.lengths.pop()

    def rename(self, old: int, new: int) -> None:
        """Rows of one slot belong to another from now on."""
        for rows in self.parts:
            if old in rows:
                rows[rows.index(old)] = new

    def _move(self, source: int, target: int) -> None:
        length = self.lengths[source]
        if source != target:
            self._write(target, length, [(layer.keys[source], layer.values[source]) for layer in self.layers])

    def _write(self, row: int, length: int, states: list[tuple[Tensor, Tensor]]) -> None:
        for layer, (keys, values) in zip(self.layers, states, strict=True):
            layer.keys[row, :, :length] = keys[:, :length]
            layer.values[row, :, :length] = values[:, :length]
        self.lengths[row] = length


class TailCache(SlotCache):
    """Keys and values of the layers after the trunk, which go on counting from it."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth

    def _layer(self, layer_idx: int) -> SlotLayer:
        return super()._layer(layer_idx - self.depth)


class JoinedCache(SlotCache):
    """The trunk's rows of a model and the cache of its own layers, for a pass through all of them."""

    def __init__(self, trunk: TrunkCache, rows: slice, tail: TailCache) -> None:
        super().__init__()
        self.trunk, self.rows, self.tail = trunk, rows, tail

    def open(self, new: int, slots: slice = slice(None)) -> Window:
        """See `SlotCache.open`; of all slots."""
        self.trunk.open(new, self.rows)
        self._window = self.tail.open(new)
        return self._window

    def advance(self, counts: Sequence[int], slots: slice = slice(None)) -> None:
        """See `SlotCache.advance`; of all slots."""
        self.trunk.advance(counts, self.rows)
        self.tail.advance(counts)

    def _layer(self, layer_idx: int) -> SlotLayer:
        return (self.trunk if layer_idx < self.tail.depth else self.tail)._layer(layer_idx)
