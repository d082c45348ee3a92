"""A run that gets further prompts, samples, conditions or judges: what it holds stays, what is new is left to decode.

A run's tables are append-only, and its conditions have an order. So a grown run is a new file: the old one's rows are
copied into it, and it takes the old one's place when it is complete on disk. A kill at any moment leaves one or the
other.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from eddecode.audit.conditions import Condition
from eddecode.audit.data.prompts import PromptRecord, as_json
from eddecode.audit.store.lock import lock_run
from eddecode.audit.store.rows import condition_rows, prompt_rows
from eddecode.audit.store.schema import COLUMNS, FILE, explained, prepare
from eddecode.audit.store.seal import seal_of_read, verify

_REPLACED = ("run", "condition", "prompt")  # tables that the new run gives; the others are copied


def grow_run(
    folder: Path,
    notes: Mapping[str, Any],
    conditions: Sequence[Condition],
    prompts: Sequence[PromptRecord] | None = None,
) -> None:
    """Give the run in a folder further conditions and prompts.

    Args:
        folder: with a run.
        notes: name → JSON data, which take the place of the run's notes of these names.
        conditions: of the grown run, in the order of its table; those of the run that have completions are among them.
        prompts: of the grown run, those of the run first; None: those of the run.

    Raises:
        StoreError: another process writes the run, the folder cannot be written, or the file is damaged.
    """
    lock = lock_run(folder)
    part = folder / f"{FILE}.grown"
    try:
        with explained(folder):
            _rewrite(folder, part, notes, conditions, prompts)
    except BaseException:
        remove_part(part)
        raise
    finally:
        lock.release()


def _rewrite(
    folder: Path,
    part: Path,
    notes: Mapping[str, Any],
    conditions: Sequence[Condition],
    prompts: Sequence[PromptRecord] | None,
) -> None:
    remove_part(part)  # of a process that was killed
    with (
        closing(sqlite3.connect(folder / FILE, isolation_level=None)) as old,
        closing(sqlite3.connect(part, isolation_level=None)) as new,
    ):
        old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        verify(folder, old)
        prepare(folder, new)
        new.execute("BEGIN IMMEDIATE")
        kept = {str(row[0]): row for row in rows_of(old, "run")}
        add_rows(new, "run", [(name, as_json(value)) for name, value in notes.items()])
        add_rows(new, "run", [row for name, row in kept.items() if name not in notes])
        add_rows(new, "condition", condition_rows(conditions))
        add_rows(new, "prompt", rows_of(old, "prompt") if prompts is None else prompt_rows(prompts))
        for table in COLUMNS:
            if table not in _REPLACED:
                add_rows(new, table, rows_of(old, table))
        new.execute("COMMIT")
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.replace(part, folder / FILE)


def rows_of(database: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a table without their seals, in the order of its key."""
    return iter(database.execute(f"SELECT {', '.join(COLUMNS[table])} FROM {table}"))


def add_rows(database: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Add rows, with values as SQLite gives them back, each with its seal, to a table."""
    marks = ", ".join("?" * (len(COLUMNS[table]) + 1))
    sealed = ((*row, seal_of_read(table, row)) for row in rows)
    database.executemany(f"INSERT INTO {table} VALUES ({marks})", sealed)


def remove_part(part: Path) -> None:
    """Delete an unfinished file, with the files that SQLite keeps beside it."""
    for left in part.parent.glob(f"{part.name}*"):
        with suppress(OSError):
            left.unlink()
