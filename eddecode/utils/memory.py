"""How much memory is free, how to allocate it, and which errors mean that there was not enough."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from eddecode.utils.control_groups import control_group_folders

T = TypeVar("T")

# The share of the free memory that keys and values may take. The rest is for activations, and for the user.
CACHE_MEMORY_FRACTION = 0.5
OWN_PAGES = 1 << 18  # bytes from which a buffer gets memory pages of its own

# Its "MemAvailable" counts the page cache, which a checkpoint that was just read fills, as available.
MEMINFO = Path("/proc/meminfo")

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


# Of torch on a CPU, of CUDA, of its libraries (CUBLAS_STATUS_ALLOC_FAILED), and of Triton.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed, on any device; on the CPU torch has no type for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error) if isinstance(error, RuntimeError) else ""
    return any(part in said for part in _OUT_OF_MEMORY)


def if_memory_suffices(run: Callable[[], T]) -> T | None:
    """What `run` gives; None where an allocation of torch's failed on the way."""
    try:
        return run()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def free_bytes(device: torch.device) -> int:
    """Bytes that could be allocated on a device now; on a CPU within the limits of control groups (containers).

    On a CUDA device this includes what torch's allocator holds and nobody uses: it gives that back when it needs to.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min([_available(), *_free_in_groups()])


def _available() -> int:
    try:
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):  # not Linux: a guess
        return 4 << 30


def _free_in_groups() -> Iterator[int]:
    """Free bytes of each control group of this process that has a limit (version 1 or 2)."""
    for folder, version in control_group_folders("memory"):
        limit_file, used_file, cached = _V1 if version == 1 else _V2
        try:
            limit, used = ((folder / name).read_text().strip() for name in (limit_file, used_file))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            if limit != "max":  # the page cache of files is freed when memory is needed
                yield max(0, int(limit) - int(used) + sum(int(stat[name]) for name in cached))
        except (OSError, ValueError, KeyError):
            continue


def has_lazy_allocation(device: torch.device) -> bool:
    """Whether large `zeros_lazy` on a device take memory only where something is written."""
    return device.type == "cpu" and hasattr(mmap, "MAP_ANONYMOUS")


def zeros_lazy(like: Tensor, *shape: int) -> Tensor:
    """Zeros of the dtype and on the device of a tensor.

    On a CPU a large tensor gets memory pages of its own. They take memory only where something is written, and go back
    to the system when the tensor is freed. Memory that is freed to the C library stays with the process instead, so
    that a buffer that grows would be counted twice.

    Raises:
        MemoryError: on a CPU, the system cannot provide so many bytes.
    """
    size = math.prod(shape) * like.dtype.itemsize
    if not has_lazy_allocation(like.device) or size < OWN_PAGES:
        return like.new_zeros(shape)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no room for {size:,} bytes of keys or values: {error}") from error
    with contextlib.suppress(OSError, AttributeError):  # a system without huge pages
        pages.madvise(
            mmap.MADV_NOHUGEPAGE
        )  # a huge page takes two megabytes for the first number that is written
    return torch.frombuffer(pages, dtype=like.dtype).view(shape)  # keeps a reference to the pages


def pack_copies(parts: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous copies of tensors, in one buffer of `zeros_lazy` per device and dtype."""
    copies: list[Tensor] = [torch.empty(0)] * len(parts)
    for kind in {(part.device, part.dtype) for part in parts}:
        members = [i for i, part in enumerate(parts) if (part.device, part.dtype) == kind]
        sizes = [parts[i].numel() for i in members]
        buffer = zeros_lazy(parts[members[0]], sum(sizes))
        for i, chunk in zip(members, torch.split(buffer, sizes), strict=True):
            copies[i] = chunk.view(parts[i].shape).copy_(parts[i])
    return copies


class Idle(Protocol):
    """Holds memory that nobody uses and that makes something later faster."""

    def release(self) -> None:
        """Let go of it."""
        ...


_idle: WeakValueDictionary[int, Idle] = WeakValueDictionary()


def register_idle(holder: Idle) -> None:
    """Have memory released, as long as its holder lives, whenever somebody's memory is short."""
    _idle[id(holder)] = holder


def release_idle() -> None:
    """Release what was registered."""
    for holder in list(_idle.values()):
        holder.release()


def release_memory() -> None:
    """Give unused and idle memory back to the system and the devices."""
    release_idle()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Make the C library give freed memory back to the system; glibc keeps what lies below any block in use."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no handle on the running program
        return None
