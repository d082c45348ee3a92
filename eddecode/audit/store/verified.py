"""Every row of a run's file is checked against its seal, once per process for each state of the file."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from eddecode.audit.store.schema import file_state
from eddecode.audit.store.seal import verify

_verified: set[tuple[Any, ...]] = set()  # states of files that this process has checked


def trust(folder: Path) -> None:
    """Take the file of a folder as checked: this process wrote all of it, from rows that it had checked."""
    _verified.add(file_state(folder))


def verify_once(folder: Path, database: sqlite3.Connection) -> None:
    """Check every row of a file that this process has not checked yet in its present state."""
    state = file_state(folder)
    if state not in _verified:
        verify(folder, database)
        _verified.add(state)
