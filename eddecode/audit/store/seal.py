"""A digest in every row of a run's file: a row that was changed on disk is found when the run is opened.

SQLite notices damage to the structure of its file, but not to what is in a row: a flipped bit in a verdict would be
another verdict. So every row ends with its seal, and a run is opened only if all of its rows agree with theirs. It is
no protection against people, who could compute seals too. Files of older releases have no seals: of them only the
structure is checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eddecode.audit.store.schema import COLUMNS, FILE, explained, is_sealed
from eddecode.errors import StoreError

_REAL = frozenset(
    (
        *("base_logprob", "aligned_logprob", "implied_reward", "score"),
        *("perplexity", "distinct_1", "distinct_2", "repetition"),
    )
)
_REAL_AT = {table: tuple(name in _REAL for name in names) for table, names in COLUMNS.items()}
# As `as_json`, with bytes in hex; made once, because a run of a million completions has two million seals.
_encode = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), check_circular=False, default=bytes.hex
).encode


def seal(table: str, values: Sequence[Any]) -> str:
    """16 hex digits over a table's name and a row's values, in the order of COLUMNS, as SQLite gives them back."""
    return seal_of_read(table, map(_as_read, values, _REAL_AT[table]))


def seal_of_read(table: str, values: Iterable[Any]) -> str:
    """The seal of values that SQLite gave back."""
    return hashlib.blake2b(_encode([table, *values]).encode(), digest_size=8).hexdigest()


def _as_read(value: Any, real: bool) -> Any:
    """A value as it comes back: no NaN, no negative zero, floats in a column of floats."""
    if value is None or isinstance(value, str | bytes):
        return value
    if real:
        return None if math.isnan(value) else float(value) + 0.0
    return int(value)


def verify(folder: Path, database: sqlite3.Connection) -> None:
    """Check the structure of a run's file and the seal of every row.

    Raises:
        StoreError: the file is damaged; the message names the first row that is not what was written.
    """
    with explained(folder):
        database.execute("BEGIN")  # one state of the file, also while another process writes
        try:
            (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(f"malformed ({found})")
            if is_sealed(database):
                for table, columns in COLUMNS.items():
                    _verify_table(folder, database, table, columns)
        finally:
            database.execute("ROLLBACK")


def _verify_table(folder: Path, database: sqlite3.Connection, table: str, columns: Sequence[str]) -> None:
    for *values, sealed in database.execute(f"SELECT {', '.join(columns)}, seal FROM {table}"):
        if sealed != seal_of_read(table, values):
            raise StoreError(
                f"{folder / FILE}: a row of the table {table} ({columns[0]} {values[0]!r:.40}) is not what was "
                "written; the file is damaged: it was left as it is; restore a copy, or start over with another --out"
            )
