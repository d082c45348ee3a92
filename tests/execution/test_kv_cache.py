"""BatchedKVCache against lists of lists: after any operations a row reads back what was written to it."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pytest
import torch

from eddecode.execution import copying
from eddecode.execution import kv_cache as cache_module
from eddecode.execution.kv_cache import LENGTH_STEP, BatchedKVCache
from eddecode.execution.row_parts import PackedRow, RowPart
from eddecode.utils.memory import has_lazy_allocation
from helpers.process import can_read_pages, resident_in

HEADS, KEY_DIM, VALUE_DIM, LAYERS = 2, 3, 5, 2


class Model:
    """The naive cache: per slot, the stamps that were written, one per position."""

    def __init__(self) -> None:
        self.cache = BatchedKVCache()
        self.rows: list[list[float]] = []
        self.stamp = 0.0

    def states(self, stamps: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, H, T, d) that say which stamp (B, T) they are, in which layer and head."""
        sign = stamps[:, None, :, None] * 10 + layer + torch.arange(HEADS)[None, :, None, None] / 4
        return sign.expand(-1, -1, -1, KEY_DIM).clone(), -sign.expand(-1, -1, -1, VALUE_DIM).clone()

    def fresh(self, *shape: int) -> torch.Tensor:
        count = int(torch.tensor(shape).prod())
        stamps = torch.arange(count, dtype=torch.float32).reshape(shape) + self.stamp + 1
        self.stamp += count
        return stamps

    def write(self, new: int, kept: list[int]) -> None:
        """A pass over `new` tokens per row, of which `kept` count."""
        stamps = self.fresh(len(self.rows), new)
        write = self.cache.prepare_write(new)
        for layer in range(LAYERS):
            keys, values = self.cache.update(*self.states(stamps, layer), layer)
            assert keys.shape == (len(self.rows), HEADS, write.end, KEY_DIM)
            assert values.shape == (len(self.rows), HEADS, write.end, VALUE_DIM)
        assert write.positions.tolist() == [list(range(len(r), len(r) + new)) for r in self.rows]
        for row, more, count in zip(self.rows, stamps.tolist(), kept, strict=True):
            row.extend(more[:count])
        self.cache.advance(kept)

    def add(self, length: int) -> None:
        stamps = self.fresh(1, length)
        self.cache.add([(k[0], v[0]) for k, v in (self.states(stamps, layer) for layer in range(LAYERS))])
        self.rows.append(stamps[0].tolist())

    def remove(self, slot: int) -> None:
        self.cache.remove(slot)
        self.rows[slot] = self.rows[-1]
        self.rows.pop()

    def rewind(self, lengths: list[int]) -> None:
        self.cache.lengths = list(lengths)
        self.rows = [row[:length] for row, length in zip(self.rows, lengths, strict=True)]

    def check(self) -> None:
        assert self.cache.lengths == [len(row) for row in self.rows]
        for slot, row in enumerate(self.rows):
            found = self.cache.export_prefix(slot, len(row))
            for layer, (keys, values) in enumerate(found):
                expected = self.states(torch.tensor([row]), layer)
                assert torch.equal(keys, expected[0][0])
                assert torch.equal(values, expected[1][0])


@pytest.mark.parametrize("seed", range(6))
def test_every_row_reads_back_what_was_written_after_random_operations(seed: int) -> None:
    chance = random.Random(seed)
    model = Model()
    for _ in range(120):
        action = chance.choice(
            ["add", "add", "write", "write", "write", "remove", "rewind", "trim", "reserve"]
        )
        count = len(model.rows)
        if action == "add" and count < 9:
            model.add(chance.randint(1, 90))
        elif action == "write" and count:
            new = chance.choice([1, 1, 1, 4, 70])
            model.write(new, [chance.randint(0, new) for _ in model.rows])
        elif action == "remove" and count:
            model.remove(chance.randrange(count))
        elif action == "rewind" and count:
            model.rewind([chance.randint(0, len(row)) for row in model.rows])
        elif action == "trim":
            model.cache.trim()
        elif action == "reserve":
            model.cache.reserve(chance.randint(0, 12), chance.randint(0, 200))
        model.check()


def test_a_pass_that_is_not_counted_can_be_repeated() -> None:
    model = Model()
    model.add(5)
    model.add(3)
    model.write(2, [0, 0])
    model.check()
    model.write(2, [2, 2])
    model.check()


def test_it_grows_in_steps_and_gives_back_what_it_can() -> None:
    model = Model()
    for _ in range(3):
        model.add(10)
    sizes = set()
    for _ in range(3 * LENGTH_STEP):
        model.write(1, [1, 1, 1])
        sizes.add(model.cache.nbytes())
    assert len(sizes) <= 5
    used = 3 * (10 + 3 * LENGTH_STEP) * HEADS * (KEY_DIM + VALUE_DIM) * LAYERS * 4
    assert used <= model.cache.nbytes() <= 1.5 * used
    model.rewind([7, 7, 7])
    model.remove(0)
    model.cache.trim()
    assert model.cache.nbytes() == 2 * 7 * HEADS * (KEY_DIM + VALUE_DIM) * LAYERS * 4
    model.check()


@pytest.mark.parametrize("fail_at", range(4))
def test_growth_that_fails_half_way_loses_nothing(fail_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out at each of the four buffers of two layers; the next try goes through."""
    module = cache_module

    model = Model()
    model.add(20)
    model.add(30)
    real, calls = module._allocate, iter(range(100))

    def short(*args: Any) -> torch.Tensor:
        if next(calls) == fail_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args)

    monkeypatch.setattr(module, "_allocate", short)
    with pytest.raises(torch.OutOfMemoryError):
        model.cache.reserve(8, 500)
    model.check()
    monkeypatch.setattr(module, "_allocate", real)
    model.write(1, [1, 1])
    model.check()
    model.cache.reserve(8, 500)
    model.check()
    model.cache.trim()
    assert model.cache.nbytes() == 2 * 31 * HEADS * (KEY_DIM + VALUE_DIM) * LAYERS * 4


def test_fresh_memory_holds_no_nan() -> None:
    """What lies beyond a row's length is masked by adding −∞-like numbers, which NaN would survive."""
    model = Model()
    model.add(1)
    model.cache.reserve(64, 4000)
    assert all(layer.keys.isfinite().all() and layer.values.isfinite().all() for layer in model.cache.layers)


def test_writing_before_prepare_write_is_an_error() -> None:
    cache = BatchedKVCache()
    cache.add([(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))])
    with pytest.raises(RuntimeError, match=r"before BatchedKVCache\.prepare_write"):
        cache.layers[0].update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))


@pytest.mark.skipif(
    not (has_lazy_allocation(torch.device("cpu")) and can_read_pages()), reason="reads Linux's /proc"
)
def test_lazily_reserved_positions_take_memory_only_when_written() -> None:
    states = [(torch.ones(2, 5, 64), torch.ones(2, 5, 64)) for _ in range(2)]
    cache = BatchedKVCache()
    cache.reserve_lazily(8, 20_000)
    cache.add(states)
    cache.reserve_lazily(16, 30_000)  # moves to larger buffers
    cache.add(states)
    assert cache.nbytes() == 4 * 16 * 2 * 30_000 * 64 * 4
    buffers = [buffer for layer in cache.layers for buffer in (layer.keys, layer.values)]
    written = resident_in((buffer.data_ptr(), buffer.nbytes) for buffer in buffers)
    assert 0 < written < cache.nbytes() / 10
    assert [tuple(keys.shape) for keys, _ in cache.export_prefix(1, 5)] == [(2, 5, 64)] * 2
    assert all(torch.equal(keys, states[0][0]) for slot in (0, 1) for keys, _ in cache.export_prefix(slot, 5))


def test_more_positions_than_memory_are_not_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "free_bytes", lambda device: 1_000_000)
    cache = BatchedKVCache()
    cache.reserve_lazily(8, 1 << 60)
    cache.add([(torch.ones(2, 5, 64), torch.ones(2, 5, 64))])
    cache.reserve_lazily(16, 1 << 60)
    assert cache.nbytes() < 1_000_000


def test_rows_that_enter_together_are_as_rows_that_enter_one_by_one() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = [
        [tuple(torch.randn(2, length, 4, generator=generator) for _ in range(2)) for _ in range(3)]
        for length in (5, 1, 9)
    ]
    together, singly = BatchedKVCache(), BatchedKVCache()
    together.add_all(rows)  # type: ignore[arg-type]
    for row in rows:
        singly.add(row)  # type: ignore[arg-type]
    assert together.lengths == singly.lengths == [5, 1, 9]
    for a, b in zip(together.layers, singly.layers, strict=True):
        for slot, length in enumerate(together.lengths):
            assert torch.equal(a.keys[slot, :, :length], b.keys[slot, :, :length])
            assert torch.equal(a.values[slot, :, :length], b.values[slot, :, :length])


def copied(table: torch.Tensor, like: torch.Tensor) -> None:
    """What `copy_blocks` does, by the CPU."""
    size = like.element_size()
    for source, target, count, apart, apart_there, heads in table.tolist():
        for head in range(heads):
            ctypes.memmove(target + head * apart_there * size, source + head * apart * size, count * size)


def test_parts_of_a_packed_row_enter_by_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two packed rows, one of them not from its beginning, behind a row that is there already."""
    generator = torch.Generator().manual_seed(1)
    buffers = [
        [torch.randn(1, 2, capacity, 4, generator=generator, dtype=dtype) for _ in range(6)]
        for capacity, dtype in ((20, torch.float32), (11, torch.float32))
    ]
    rows = [PackedRow(each) for each in buffers]
    parts = [RowPart(rows[0], 0, 5), RowPart(rows[0], 5, 6), RowPart(rows[1], 2, 11), RowPart(rows[0], 6, 20)]
    assert parts[2].nbytes == sum(state.nbytes for pair in parts[2] for state in pair) == 9 * 2 * 4 * 4 * 6
    launches = []
    monkeypatch.setattr(copying, "_in_one_launch", lambda copies: True)
    monkeypatch.setattr(copying, "_launch", lambda *given: (launches.append(len(given[0])), copied(*given)))
    together, singly = BatchedKVCache(), BatchedKVCache()
    together.add_all(parts)
    together.add_all(parts[:2])
    for part in (*parts, *parts[:2]):
        singly.add(list(part))
    assert launches == [3 * 6, 2 * 6]
    assert together.lengths == singly.lengths == [5, 1, 9, 14, 5, 1]
    for a, b in zip(together.layers, singly.layers, strict=True):
        for slot, length in enumerate(together.lengths):
            assert torch.equal(a.keys[slot, :, :length], b.keys[slot, :, :length])
            assert torch.equal(a.values[slot, :, :length], b.values[slot, :, :length])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_moves_is_copied_by_one_table(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = [
        [
            (torch.randn(2, length, 4, generator=generator).to(dtype), torch.randn(2, length, 6).to(dtype))
            for _ in range(3)
        ]
        for length in (5, 8, 2, 7)
    ]
    cache, launches = BatchedKVCache(), []
    cache.add_all(rows)
    monkeypatch.setattr(copying, "triton_runs", lambda device, dtype: True)
    monkeypatch.setattr(copying, "_launch", lambda *given: (launches.append(len(given[0])), copied(*given)))
    cache.remove(1)
    cache.remove(2)  # the last one: nothing moves
    assert launches == [2 * 3]
    assert cache.lengths == [5, 7]
    for layer, of_each_row in zip(cache.layers, zip(*(rows[0], rows[3]), strict=True), strict=True):
        for slot, (keys, values) in enumerate(of_each_row):
            assert torch.equal(layer.keys[slot, :, : cache.lengths[slot]], keys)
            assert torch.equal(layer.values[slot, :, : cache.lengths[slot]], values)


def test_a_row_without_states_can_be_removed() -> None:
    cache = BatchedKVCache()
    cache.lengths = [3, 4]
    cache.remove(0)
    assert cache.lengths == [4]
