"""BatchedKVCache: the keys and values of many rows, each with a length of its own.

A slot is a row of the batch. Rows enter and leave while the others go on, so no two need have the same length: a
forward pass writes every row at that row's own next positions and reads the filled part of the buffer, and what lies
beyond a row's length is hidden from it by the mask. Nothing is ever erased, hence truncating is only a smaller length.
The occupied slots are always 0 … n−1, so that what a pass reads is a view, never a copy.
Which keys a query sees is for `eddecode.execution.attention` to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from eddecode.execution.attention import KeyRangeMask
from eddecode.execution.copying import copy_into_slots, move_slot
from eddecode.execution.row_parts import PackedRow
from eddecode.utils.device import copy_to_device
from eddecode.utils.memory import free_bytes, has_lazy_allocation, pack_copies, zeros_lazy
from eddecode_kernels.decoder_layer import DecoderLayerShape, ForwardContext, KVPointers

LENGTH_STEP = 64  # buffers grow by that many positions, or by an eighth: growing is rare and waste is small


@dataclass
class WritePositions:
    """Where one forward pass writes: at `positions` (B, T) int64 of the slots `slots`, all of them below `end`.

    `aligned_start` is set where all rows write at the same positions, so that a slice does the work of a scatter.
    """

    positions: Tensor
    slots: slice
    end: int
    aligned_start: int | None
    pretended: int = 0  # added to *the* length, to see whether a model's layers use it
    length_was_asked: bool = False
    _index: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(rows, positions) as index tensors on the device of a layer: (B, 1) and (B, T) int64."""
        if device not in self._index:
            rows = torch.arange(self.slots.stop, device=device)[self.slots, None]
            positions = self.positions
            if positions.device != device:
                positions = copy_to_device(positions, device)
            self._index[device] = rows, positions
        return self._index[device]


class LayerKVCache(CacheLayerMixin):  # type: ignore[misc]  # transformers ships no types
    """Keys and values of one layer, (slots, heads, capacity, head_dim) each; made when the layer first writes."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.write: WritePositions | None = None  # of the pass in progress
        self.reserved = (0, 0)  # slots, positions

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the reserved size, shaped after the first states that come."""
        self.keys, self.values = (
            _allocate(key_states, *self.reserved),
            _allocate(value_states, *self.reserved),
        )
        self.is_initialized = True

    def reserve(self, slots: int, capacity: int, used: tuple[int, int] = (0, 0)) -> None:
        """Have room for that many slots and positions from the next write on, and keep those in use."""
        if (slots, capacity) == self.reserved:
            return
        if self.is_initialized:  # both or none: a failed allocation leaves the layer as it was
            self.keys, self.values = (
                self._reallocated(old, slots, capacity, used) for old in (self.keys, self.values)
            )
        self.reserved = (slots, capacity)

    @staticmethod
    def _reallocated(old: Tensor, slots: int, capacity: int, used: tuple[int, int]) -> Tensor:
        """A larger or smaller buffer with what is in use: copying what was never written would take memory for it."""
        new = _allocate(old, slots, capacity)
        rows, length = used
        new[:rows, :, :length] = old[:rows, :, :length]
        return new

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new states (B, heads, T, head_dim) at the pass's positions; return all up to its end as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        write = self._current_write()
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            if write.aligned_start is not None:
                buffer[write.slots, :, write.aligned_start : write.end] = states
            else:
                rows, positions = write.index(buffer.device)
                # torch puts the indexed axes first: (B, T, heads, head_dim)
                buffer[rows, :, positions] = rearrange(states, "b h t d -> b t h d")
        return self.keys[write.slots, :, : write.end], self.values[write.slots, :, : write.end]

    def buffers(self, heads: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, heads, capacity, head_dim) from the pass's first row on, for compiled layers."""
        if not self.is_initialized:
            shape = like.new_empty(0, heads, 0, head_dim)
            self.lazy_initialization(shape, shape)
        slots = self._current_write().slots
        rows = slice(slots.start, None, slots.step)
        return self.keys[rows], self.values[rows]

    def _current_write(self) -> WritePositions:
        if self.write is None:
            raise RuntimeError("a BatchedKVCache was written to before BatchedKVCache.prepare_write()")
        return self.write

    def get_seq_length(self) -> int:
        """Positions filled before this pass, of the longest row.

        Models ask for it, and nearly all leave it unused, since positions are passed to them. Layers that do use it
        cannot run rows of different lengths in one pass: `self_check.depends_on_length` finds them.
        """
        if self.write is None:
            return 0
        self.write.length_was_asked = True
        return self.write.end - self.write.positions.shape[1] + self.write.pretended

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(key length, offset) of this pass."""
        return self._current_write().end, 0

    def get_max_length(self) -> int:
        """No maximum: buffers grow."""
        return -1

    get_max_cache_shape = get_max_length  # the name before transformers 5.20


def _allocate(like: Tensor, slots: int, capacity: int) -> Tensor:
    # Zeros, not empty: a NaN left in fresh memory would survive the mask (NaN + −inf is NaN).
    return zeros_lazy(like, slots, like.shape[1], capacity, like.shape[3])


class BatchedKVCache(Cache):  # type: ignore[misc]
    """Keys and values of one model, for slots 0 … n−1 of lengths `lengths`."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=LayerKVCache)
        self.lengths: list[int] = []
        self.pretended = 0  # see `WritePositions.pretended`
        self._reserved = (0, 0)
        self._expected = 0  # positions to reserve once the first states show how large one is
        self._pointers: dict[Any, KVPointers] = {}

    @property
    def reserved(self) -> tuple[int, int]:
        """Slots and positions that there is room for."""
        return self._reserved

    def reserve(self, slots: int, capacity: int) -> None:
        """Have room for that many slots and positions; never shrinks (see `trim`)."""
        self._resize(max(slots, self._reserved[0]), max(capacity, self._reserved[1]))

    def reserve_lazily(self, slots: int, positions: int) -> None:
        """Have room for that many slots, and for the positions that they may come to have if that takes no memory yet.

        That is so where large buffers take memory only as they are written to. A buffer that grows later is copied.
        """
        made = [layer for layer in self.layers if layer.is_initialized]
        buffers = [buffer for layer in made for buffer in (layer.keys, layer.values)]
        if buffers:
            self._reserve_like(buffers, slots, positions)
        else:
            self._expected = positions
            self.reserve(slots, 0)

    def _reserve_like(self, buffers: Sequence[Tensor], slots: int, positions: int) -> None:
        """As `reserve_lazily`, with buffers like these (…, heads, positions, head_dim)."""
        before, capacity = self._reserved
        slots, grows = max(slots, before), slots > before
        if (grows or positions > capacity) and all(has_lazy_allocation(t.device) for t in buffers):
            if grows:  # all buffers move anyway, to ones no longer than they have to be
                capacity = max(self.lengths, default=0)
            needed = positions * sum(t.shape[-3] * t.shape[-1] * t.dtype.itemsize for t in buffers)
            if slots * needed <= free_bytes(buffers[0].device):  # no more than could be filled
                capacity = max(capacity, positions)
        self._resize(slots, capacity)

    def _grow(self, slots: int, capacity: int) -> None:
        """Have room for that many slots and positions, and for more positions to come."""
        if capacity > self._reserved[1]:
            capacity = -(-max(capacity, self._reserved[1] * 9 // 8) // LENGTH_STEP) * LENGTH_STEP
        self.reserve(slots, capacity)

    def trim(self) -> None:
        """Give back all memory that the occupied slots do not need."""
        self._resize(len(self.lengths), max(self.lengths, default=0))

    def _resize(self, slots: int, capacity: int) -> None:
        if (slots, capacity) != self._reserved:
            self._pointers.clear()  # the buffers move
            used = len(self.lengths), max(self.lengths, default=0)
            for layer in self.layers:
                layer.reserve(slots, capacity, used)
            self._reserved = (slots, capacity)

    def prepare_write(self, new: int, slots: slice = slice(None)) -> WritePositions:
        """Prepare a pass that writes `new` tokens to every occupied slot, or to some; returns where they go.

        The lengths stay as they are until `advance`: a pass that fails can be repeated.
        """
        lengths = self.lengths[slots]
        starts = torch.tensor(lengths)[:, None]
        positions = starts if new == 1 else starts + torch.arange(new)
        end = max(lengths) + new
        self._grow(len(self.lengths), end)
        same = min(lengths) == max(lengths)
        occupied = slice(*slots.indices(len(self.lengths)))
        write = WritePositions(positions, occupied, end, lengths[0] if same else None, self.pretended)
        for layer in self.layers:
            layer.write = write
        self._write = write
        return write

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `LayerKVCache.update`; layers are made as the model's first pass reaches them."""
        return self._layer(layer_idx).update(key_states, value_states)

    def pointers(self, layers: Sequence[int], shape: DecoderLayerShape, like: Tensor) -> KVPointers:
        """Where compiled layers write the keys and values of the pass in progress.

        Args:
            layers: their indices.
            shape: of the layers.
            like: a tensor of the dtype and device that new buffers are to have.
        """
        slots = self._write.slots
        key = (tuple(layers), slots.start, slots.step)
        if key not in self._pointers:
            made = [self._layer(index) for index in layers]
            self._pointers[key] = KVPointers(
                [layer.buffers(shape.num_kv_heads, shape.head_dim, like) for layer in made]
            )
        return self._pointers[key]

    def forward_context(
        self, mask: KeyRangeMask, angles: tuple[Tensor, Tensor], lora_rows: slice | None
    ) -> ForwardContext:
        """What compiled layers need to know of the pass in progress.

        Args:
            mask: of the kind of layer.
            angles: cosines and sines, (B or 1, T, R).
            lora_rows: which rows add the low-rank terms; None is none.
        """
        positions = self._write.positions.to(mask.start.device)
        cos, sin = (each.expand(*positions.shape, each.shape[-1]) for each in angles)
        return ForwardContext(
            cos.contiguous(),
            sin.contiguous(),
            positions,
            mask.start,
            mask.end,
            lora_rows,
            self._write.end,
            mask.tiles,
        )

    def _layer(self, layer_idx: int) -> LayerKVCache:
        while len(self.layers) <= layer_idx:
            layer = LayerKVCache()
            layer.reserve(*self._reserved)
            layer.write = self._write
            self.layers.append(layer)
        made: LayerKVCache = self.layers[layer_idx]
        return made

    def advance(self, counts: Sequence[int], slots: slice = slice(None)) -> None:
        """Count written tokens as part of their rows."""
        self.lengths[slots] = [
            length + count for length, count in zip(self.lengths[slots], counts, strict=True)
        ]

    def add(self, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Occupy the next slot with states from elsewhere: per layer keys and values (heads, length, head_dim)."""
        slot, length = len(self.lengths), states[0][0].shape[1]
        if not self.layers:
            self._reserve_like([state for pair in states for state in pair], slot + 1, self._expected)
        self._grow(slot + 1, length)
        while len(self.layers) < len(states):
            layer = LayerKVCache()
            layer.reserve(*self._reserved)
            self.layers.append(layer)
        for layer, (keys, values) in zip(self.layers, states, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[slot, :, :length] = keys
            layer.values[slot, :, :length] = values
        self.lengths.append(length)

    def add_all(self, rows: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> None:
        """Occupy the next slots, as `add` does one, by one launch on a GPU."""
        is_ready = bool(self.layers) and all(layer.is_initialized for layer in self.layers)
        if rows and not is_ready:
            self.add(rows[0])  # makes what is not there yet
            rows = rows[1:]
        if not rows:
            return
        first, lengths = len(self.lengths), [states[0][0].shape[1] for states in rows]
        self._grow(first + len(rows), max(lengths))
        copy_into_slots(self._buffers(), first, rows)
        self.lengths += lengths

    def _buffers(self) -> list[Tensor]:
        return [buffer for layer in self.layers for buffer in (layer.keys, layer.values)]

    def export_prefix(self, slot: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of the first `length` positions of a slot, as `add` takes them."""
        self._make_skipped_layers()
        copies = pack_copies([buffer[slot, :, :length] for buffer in self._buffers()])
        return list(zip(copies[::2], copies[1::2], strict=True))

    def packed_row(self) -> PackedRow:
        """The only row, whose parts `add` takes: they are views, not copies."""
        self._make_skipped_layers()
        return PackedRow(self._buffers())

    def _make_skipped_layers(self) -> None:
        """Empty buffers for layers that a pass left out, such as cross-attention without an image (Mllama)."""
        made = [layer for layer in self.layers if layer.is_initialized]
        for layer in self.layers:
            if not layer.is_initialized and made:
                nothing = made[0].keys.new_empty(0, 0, 0, 0)
                layer.lazy_initialization(nothing, nothing)

    def remove(self, slot: int) -> None:
        """Vacate a slot; the last occupied slot moves into its place."""
        last = len(self.lengths) - 1
        if slot != last:
            length = self.lengths[last]
            move_slot(self._buffers(), last, slot, length)
            self.lengths[slot] = length
        self.lengths.pop()

    def nbytes(self) -> int:
        """Bytes held by all buffers."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.is_initialized)
