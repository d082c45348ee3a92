"""Work in a child process, which may be killed or limited without harm to this one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# Writes a line that the parent process reads.
Say = Callable[[str], Any]


def forked(work: Callable[[Say], Any], seconds: float | None = None) -> tuple[bool, list[str]]:
    """Do some work in a child process, and kill it after some time: whether it was killed, and what it said."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            work(lambda text: os.write(writer, f"{text}\n".encode()))
            os._exit(0)
        os._exit(1)
    os.close(writer)
    if seconds is not None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not _ended(child):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as pipe:
        said = pipe.read().splitlines()
    return os.WIFSIGNALED(os.waitpid(child, 0)[1]), said


def _ended(child: int) -> bool:
    """Whether a child process has ended; its status can still be asked for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
