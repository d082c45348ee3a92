"""A run that gets further conditions: what it holds stays, and what is new is left to decode.

A run's tables are append-only, and its conditions have an order. So a grown run is a new file: the old one's rows are
copied into it, and it takes the old one's place when it is complete on disk. A kill at any moment leaves one or the
other.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from eddecode.audit.conditions import Condition
from eddecode.audit.data.prompts import as_json
from eddecode.audit.store.lock import lock_run
from eddecode.audit.store.schema import FILE, explained, prepare

_COPIED = ("session", "prompt", "completion", "judge", "sitting", "verdict")


def grow_run(folder: Path, notes: Mapping[str, Any], conditions: Sequence[Condition]) -> None:
    """Give the run in a folder further conditions.

    Args:
        folder: with a run.
        notes: name → JSON data, which take the place of the run's notes of these names.
        conditions: of the grown run, in the order of its table; those of the run are among them.

    Raises:
        StoreError: another process writes the run, or the folder cannot be written.
    """
    lock = lock_run(folder)
    try:
        with explained(folder):
            _rewrite(folder, notes, conditions)
    finally:
        lock.release()


def _rewrite(folder: Path, notes: Mapping[str, Any], conditions: Sequence[Condition]) -> None:
    part = folder / f"{FILE}.grown"
    for left in folder.glob(f"{part.name}*"):  # of a process that was killed
        left.unlink()
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as old:
        old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with closing(sqlite3.connect(part, isolation_level=None)) as database:
        prepare(folder, database)
        database.execute("ATTACH DATABASE ? AS old", (str(folder / FILE),))
        database.execute("BEGIN IMMEDIATE")
        new = [(name, as_json(value)) for name, value in notes.items()]
        database.executemany("INSERT INTO run VALUES (?, ?)", new)
        database.execute("INSERT OR IGNORE INTO run SELECT * FROM old.run")
        rows = [
            (c.name, i, c.kind, c.alpha, c.system, c.transform, c.mitigation, c.model)
            for i, c in enumerate(conditions)
        ]
        database.executemany("INSERT INTO condition VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        for table in _COPIED:
            database.execute(f"INSERT INTO {table} SELECT * FROM old.{table}")
        database.execute("COMMIT")
        database.execute("DETACH DATABASE old")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.replace(part, folder / FILE)
