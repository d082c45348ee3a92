"""How much memory there is, and whether an error says that there was not enough."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import torch

SHARE = 0.5  # of the memory that is free now, for keys and values: activations and the user need some too

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


def release_memory() -> None:
    """Return what nobody holds to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
