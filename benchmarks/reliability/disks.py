"""Disks that take no more: a limit on the size of files, a file system that is full, one that is read-only.

Mounting a file system needs root. Where that is refused, the cases that need one are left out, and the table says so.
"""

from __future__ import annotations

import random
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.reliability.child import Say, forked
from benchmarks.reliability.figure import Figure, count, holds, noted
from benchmarks.reliability.runs import config, message, run, table
from eddecode.errors import EddecodeError


def file_limits(root: Path, rng: random.Random, limits: int) -> list[Figure]:
    """Processes whose files may not grow beyond a limit, as on a full disk; then one without the limit goes on."""
    run(config(root / "alone"))
    wanted, size = table(root / "alone"), (root / "alone" / "run.sqlite").stat().st_size
    messages, different, traces = 0, 0, 0
    for number in range(limits):
        folder = root / f"limit-{number}"
        _, said = forked(partial(_limited, folder, rng.randrange(20_000, size)))
        messages += any(line.startswith("message") for line in said)
        traces += not said
        run(config(folder))
        different += table(folder) != wanted
    full = f"{limits} full disks (a limit on the file's size): a message"
    return [
        Figure(full, str(messages), str(limits), not traces),
        count("… other tables after the run went on with space", different),
    ]


def _limited(folder: Path, limit: int, say: Say) -> None:
    """An audit whose files have at most `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run(config(folder))
    except EddecodeError as error:
        say(f"message {error}")


@contextmanager
def small_disk(root: Path, size: str) -> Iterator[Path | None]:
    """A file system of that size in memory; None where mounting is refused."""
    place = root / "disk"
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    try:
        yield place if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(place)], check=True)


def small_disks(root: Path) -> list[Figure]:
    """A disk that is full, and one that is read-only."""
    run(config(root / "alone"))
    wanted = table(root / "alone")
    with small_disk(root, "512k") as disk:
        if disk is None:
            return [noted("a small disk, a read-only disk", "not tried: mounting is refused here")]
        said = message(lambda: run(config(disk / "run")))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        run(config(disk / "run"))
        same = table(disk / "run") == wanted
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        readable = table(disk / "run") == wanted
        refused = message(lambda: run(config(disk / "other")))
        again = message(lambda: run(config(disk / "run", samples=3), grow=True))
    return [
        Figure("a disk of 512 kB that is full: a message that says so", said, "full", "full" in said),
        holds("… and the same table after it was enlarged", same),
        holds("a read-only disk: the run is read", readable),
        Figure("… another audit there: a message", refused, "", "Read-only" in refused),
        Figure("… the run cannot grow: a message", again, "", again != "none"),
    ]
