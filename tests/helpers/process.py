"""The process that runs the tests: figures of the operating system about it, and copies of it that run commands."""

from __future__ import annotations

import mmap
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from eddecode.cli import app


def can_read_pages() -> bool:
    """Whether this system tells `resident_in` which pages are in memory: Linux does."""
    return os.access("/proc/self/pagemap", os.R_OK)


def resident_in(ranges: Iterable[tuple[int, int]]) -> int:
    """Bytes that are in memory now within ranges of (address, bytes) of this process, by whole pages.

    Unlike a figure for the whole process, no other test can move it: its threads, its garbage, what the heap keeps.
    """
    found, size = 0, mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
        for address, nbytes in ranges:
            first, last = -(-address // size), (address + nbytes) // size
            if first >= last:
                continue
            entries = np.frombuffer(os.pread(pages.fileno(), 8 * (last - first), 8 * first), dtype=np.uint64)
            found += size * int((entries >> np.uint64(63)).sum())  # its highest bit: the page is in memory
    return found


def forked(work: Callable[[], Any]) -> tuple[int, TextIO]:
    """Do some work in a copy of this process: a real process that can be killed, and that has nothing to import.

    It computes with one thread, since a copy lacks the threads of the process that was copied.

    Returns:
        The child's process id, and what it writes to standard error. Its exit status is that of `SystemExit`, 0 where
        the work ends without, and 1 after any other exception.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, os.fdopen(reader)
    status = 1  # nothing may leave this branch: it is a copy of the whole test process
    try:
        os.dup2(writer, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
        work()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def run_command(*arguments: str) -> None:
    """`eddecode ARGUMENTS`, for a copy of this process, which it ends where it hangs.

    Raises:
        SystemExit: it ends with another exit status than 0.
    """
    signal.alarm(570)
    status = app(list(arguments), standalone_mode=False)
    if status:
        raise SystemExit(status)


def run_program(*arguments: str) -> None:
    """`python -m eddecode ARGUMENTS`, for a copy of this process: all that a program of its own does but its imports.

    Ctrl-C is heeded, the exit status is the program's, and what it has left running is waited for.

    Raises:
        SystemExit: as by the program.
    """
    signal.alarm(570)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without
    sys.argv = ["eddecode", *arguments]
    try:
        runpy.run_module("eddecode", run_name="__main__", alter_sys=True)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # the first step of the interpreter's own end
