"""Deleting a run: the files that an audit wrote into its folder, and no others."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from eddecode.audit.store.lock import FILE as LOCK
from eddecode.audit.store.lock import lock_run
from eddecode.audit.store.schema import FILE
from eddecode.errors import StoreError

STORE_FILES = (FILE, f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal")
# Not audit.toml and prompts.jsonl, which may be the user's own: an audit of files in its folder. It writes them anew.
_FILES = (*STORE_FILES, "summary.json", "curve.svg", "curve.png", "report.html")


def discard_run(folder: Path) -> None:
    """Delete the files of the run in a folder; a folder without one stays as it is.

    Raises:
        StoreError: another process writes the run, or a file cannot be deleted.
    """
    if not folder.is_dir():
        return
    lock = lock_run(folder)
    try:
        remove_files(folder, _FILES)
    finally:
        lock.release()


def remove_files(folder: Path, names: tuple[str, ...]) -> None:
    """Delete files of a folder, those that are there.

    Raises:
        StoreError: one cannot be deleted.
    """
    for name in names:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"{folder / name} cannot be deleted ({error.strerror}); make the folder writable, or choose another "
                "with --out"
            ) from error


def remove_traces(folder: Path, made_folder: bool) -> None:
    """Delete a store that never got a completion, and its folder if this process made it. The lock must be held."""
    remove_files(folder, STORE_FILES)
    if made_folder:
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
