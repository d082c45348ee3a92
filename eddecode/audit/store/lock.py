"""One writer per run folder.

SQLite alone would let two processes take turns at one run and decode everything twice. An advisory lock on a file
beside it says no at once, and says who has it; the system lets go of it when its holder dies, however it dies.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO

from eddecode.errors import StoreError

FILE = "run.lock"


class RunLock:
    """Holds a run folder until `release`, or the end of the process.

    Raises:
        StoreError: another process holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._file: IO[str] = (folder / FILE).open("a+")
        if not _try_lock(self._file):
            self._file.seek(0)
            holder = self._file.read(200).strip() or "another process"
            self._file.close()
            raise StoreError(
                f"run {folder} is in use by {holder}; wait for it to end, or choose another --out"
            )
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let another process have the folder."""
        self._file.close()


def _try_lock(file: IO[str]) -> bool:
    """Take the lock if it is free; False if somebody has it."""
    try:
        import fcntl
    except ImportError as error:
        raise StoreError("audits need a system with POSIX file locks, such as Linux or macOS") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
