"""How much memory there is, how to take it, and whether an error says that there was not enough."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import mmap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

CACHE_MEMORY_FRACTION = (
    0.5  # of the memory that is free now, for keys and values: activations and the user need some too
)
OWN_PAGES = 1 << 18  # bytes from which a buffer is worth pages of its own

# What could be had, not what lies idle: a checkpoint that was just read fills the page cache, and that gives way.
MEMINFO = Path("/proc/meminfo")

# A container's limit is its control group's; one may stand at the process's own group or at any that this is in.
OWN_GROUPS, CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device; torch has no one type for it on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def free_bytes(device: torch.device) -> int:
    """Bytes that could be allocated on a device now; of the CPU's no more than control groups leave (a container)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([_available(), *_left_by_groups()])


def _available() -> int:
    try:
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):  # not Linux
        return 4 << 30


def _left_by_groups() -> Iterator[int]:
    """What each control group around this process leaves, where it has a limit (version 1 or 2)."""
    for folder, (limit_file, used_file, cached) in _groups():
        try:
            limit, used = ((folder / name).read_text().strip() for name in (limit_file, used_file))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            if limit != "max":  # what files have cached gives way when memory is needed
                yield max(0, int(limit) - int(used) + sum(int(stat[name]) for name in cached))
        except (OSError, ValueError, KeyError):
            continue


def _groups() -> Iterator[tuple[Path, tuple[str, str, tuple[str, str]]]]:
    """Folders of the memory groups that the process is in, from the outermost in, and the names of their files.

    A container may see its own group as the root while its path is told from outside: folders need not be there.
    """
    try:
        lines = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, names = (CONTROL_GROUPS / "memory", _V1) if controllers else (CONTROL_GROUPS, _V2)
        yield folder, names
        for part in path.strip("/").split("/"):
            folder /= part
            yield folder, names


def has_lazy_allocation(device: torch.device) -> bool:
    """Whether large `zeros_lazy` on a device take memory only where something is written."""
    return device.type == "cpu" and hasattr(mmap, "MAP_ANONYMOUS")


def zeros_lazy(like: Tensor, *shape: int) -> Tensor:
    """Zeros of the dtype and on the device of a tensor.

    On a CPU they take memory only where something is written, and a large one is on pages of its own: what is freed
    goes back to the system at once, whereas the C library keeps what it has been given back, and a buffer that grows
    would be held twice.

    Raises:
        MemoryError: the system has no room for it, on a CPU.
    """
    size = math.prod(shape) * like.dtype.itemsize
    if not has_lazy_allocation(like.device) or size < OWN_PAGES:
        return like.new_zeros(shape)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no room for {size:,} bytes of keys or values: {error}") from error
    with contextlib.suppress(OSError, AttributeError):  # where there are no huge ones
        pages.madvise(mmap.MADV_NOHUGEPAGE)  # of which one number written would take two megabytes
    return torch.frombuffer(pages, dtype=like.dtype).view(shape)  # holds on to the pages


def pack_copies(parts: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors, contiguous, in one buffer of `zeros_lazy` for each device and dtype: what goes together."""
    copies: list[Tensor] = [torch.empty(0)] * len(parts)
    for kind in {(part.device, part.dtype) for part in parts}:
        members = [i for i, part in enumerate(parts) if (part.device, part.dtype) == kind]
        sizes = [parts[i].numel() for i in members]
        buffer = zeros_lazy(parts[members[0]], sum(sizes))
        for i, room in zip(members, torch.split(buffer, sizes), strict=True):
            copies[i] = room.view(parts[i].shape).copy_(parts[i])
    return copies


def release_memory() -> None:
    """Return what nobody holds to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Have the C library give back what was freed; it would keep what lies below anything still in use (glibc)."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # no way to look into the running program (Windows)
        return None
