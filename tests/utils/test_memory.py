"""How much memory there is, and what counts as a shortage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eddecode.utils import control_groups, memory
from eddecode.utils.memory import is_out_of_memory, pack_copies, zeros_lazy
from helpers.process import can_read_pages, resident_in


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: out of memory\nCompile with"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_shortages_are_told_from_other_errors(error: BaseException, short: bool) -> None:
    assert memory.is_out_of_memory(error) is short


def test_a_real_shortage_is_recognised() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(1 << 50)
    assert memory.is_out_of_memory(caught.value)


def test_what_the_page_cache_holds_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "meminfo"
    table.write_text(
        "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    9000000 kB\n"
    )
    monkeypatch.setattr(memory, "MEMINFO", table)
    monkeypatch.setattr(control_groups, "OWN_GROUPS", tmp_path / "none")
    assert memory.free_bytes(torch.device("cpu")) == 9_000_000 * 1024
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert memory.free_bytes(torch.device("cpu")) == 4 << 30


def test_what_torch_keeps_unused_on_a_gpu_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that were freed stay with torch: the next call may have as much memory as the first had."""
    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (30, 141) if d == device else (0, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda d: 100 if d == device else 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: 27 if d == device else 0)
    assert memory.free_bytes(device) == 30 + 73


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
V2 = ("memory.max", "memory.current", "")


def group(folder: Path, names: tuple[str, str, str], limit: str | int, used: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]}inactive_file 60\n{names[2]}active_file 40\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1000 bytes to be had, and a tree of control groups of our own."""
    monkeypatch.setattr(memory, "_available", lambda: 1000)
    monkeypatch.setattr(control_groups, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(control_groups, "CONTROL_GROUPS", tmp_path / "tree")
    return tmp_path


@pytest.mark.parametrize(("limit", "free"), [("max", 1000), (900, 500), (5000, 1000), (300, 0), ("?", 1000)])
@pytest.mark.parametrize("at", [".", "a", "a/b"])
@pytest.mark.parametrize("names", [V1, V2], ids=["v1", "v2"])
def test_the_tightest_control_group_bounds_what_is_free(
    groups: Path, names: tuple[str, str, str], at: str, limit: str | int, free: int
) -> None:
    root = groups / "tree" / ("memory" if names is V1 else "")
    for folder in (".", "a", "a/b"):
        group(root / folder, names, 1 << 62, 500)  # what version 1 says for no limit
    group(root / at, names, limit, 500)
    (groups / "own").write_text("3:cpu,cpuacct:/c\n2:memory:/a/b\n" if names is V1 else "0::/a/b\n")
    assert memory.free_bytes(torch.device("cpu")) == free


def test_a_container_that_sees_its_group_as_the_root(groups: Path) -> None:
    group(groups / "tree", V2, 800, 300)
    (groups / "own").write_text("0::/somewhere/outside\n")
    assert memory.free_bytes(torch.device("cpu")) == 600


def test_no_control_groups_bound_nothing(groups: Path) -> None:
    assert memory.free_bytes(torch.device("cpu")) == 1000
    (groups / "own").write_text("1:cpu:/a\n")
    group(groups / "tree" / "memory", V1, 10, 0)
    assert memory.free_bytes(torch.device("cpu")) == 1000


def test_a_gpu_has_memory_of_its_own(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group(groups / "tree", V2, 800, 300)
    (groups / "own").write_text("0::/\n")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7000, 8000))
    assert memory.free_bytes(torch.device("cuda")) == 7000


@pytest.mark.skipif(not can_read_pages(), reason="reads from Linux's /proc which pages are in memory")
def test_large_zeros_take_memory_only_where_they_are_written_and_give_it_back() -> None:
    size = 256 << 20
    made = zeros_lazy(torch.empty(0, dtype=torch.bfloat16), 4, size // 8)
    place = [(made.data_ptr(), size)]
    assert made.shape == (4, size // 8)
    assert made.dtype == torch.bfloat16
    assert resident_in(place) == 0
    made[1] = 1
    assert resident_in(place) == size // 4
    assert made.sum() == size // 8
    view = made[1, :10]
    del made
    assert view.sum() == 10  # a view holds on to the pages
    assert resident_in(place) >= size // 4
    del view
    assert resident_in(place) < size // 8
    assert zeros_lazy(torch.empty(0), 2, 3).tolist() == [[0.0] * 3] * 2  # small ones too


def test_zeros_that_cannot_be_had_say_so() -> None:
    with pytest.raises((MemoryError, RuntimeError)) as error:
        zeros_lazy(torch.empty(0), 1 << 30, 1 << 26)
    assert is_out_of_memory(error.value)


def test_copies_lie_side_by_side_and_are_equal() -> None:
    numbers = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    parts = [numbers[1, :, :2], numbers.bfloat16()[0, :, 1:], numbers[0, :1, :0], numbers[0, 2]]
    copies = pack_copies(parts)
    for copy, part in zip(copies, parts, strict=True):
        assert copy.is_contiguous()
        assert copy.dtype == part.dtype
        assert torch.equal(copy, part)
    assert copies[3].data_ptr() - copies[0].data_ptr() == copies[0].nbytes
    numbers.zero_()
    assert copies[3].any()
