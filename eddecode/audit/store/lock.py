"""One writer per run folder.

SQLite alone would let two processes take turns at one run and decode everything twice. A lock on a file in the run's
folder refuses the second process at once. The operating system frees the lock when its holder ends, also when it is
killed.
"""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from eddecode.errors import StoreError

FILE = "run.lock"


def is_locked(folder: Path) -> bool:
    """Whether a process writes the run in a folder now; False where that cannot be found out."""
    if not (folder / FILE).is_file():
        return False
    try:
        with FileLock(folder / FILE, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def lock_run(folder: Path) -> BaseFileLock:
    """Make a run's folder if it is missing, and take its lock: held until `release()` or the end of the process.

    Raises:
        StoreError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / FILE, thread_local=False)
        lock.acquire(blocking=False)
    except Timeout:
        raise StoreError(
            f"run {folder} is in use: another process is writing to it; wait for it to end, or choose another --out"
        ) from None
    except OSError as error:
        raise StoreError(
            f"run folder {folder} cannot be written ({error.strerror}); choose another with --out"
        ) from error
    return lock
