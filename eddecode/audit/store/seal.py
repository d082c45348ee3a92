"""A digest in every row of a run's file: a row that was changed on disk is found when the run is opened.

SQLite notices damage to the structure of its file, but not to what is in a row: a flipped bit in a verdict would be
another verdict. So every row ends with its seal, and a run is opened only if all of its rows agree with theirs. It is
no protection against people, who could compute seals too. Files of older releases have no seals: of them only the
structure is checked.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
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
    return seal_of_text(text_of_read(table, values))


def text_of_read(table: str, values: Iterable[Any]) -> str:
    """What a seal is a digest of: `["TABLE",VALUE,…]`, of values that SQLite gave back."""
    return _encode([table, *values])


def seal_of_text(text: str) -> str:
    """16 hex digits over the text of a row."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _as_read(value: Any, real: bool) -> Any:
    """A value as it comes back: no NaN, no negative zero, floats in a column of floats."""
    if value is None or isinstance(value, str | bytes):
        return value
    if real:
        return None if math.isnan(value) else float(value) + 0.0
    return int(value)


def verify(folder: Path, database: sqlite3.Connection, later: Collection[str] = ()) -> None:
    """Check the structure of a run's file and the seal of every row.

    Args:
        folder: of the run.
        database: its file.
        later: tables whose rows `checked_rows` will check; the file is then not checked for indexes that disagree with
            their tables, since whoever reads those tables whole needs no index.

    Raises:
        StoreError: the file is damaged; the message names the first row that is not what was written.
    """
    with explained(folder):
        database.execute("BEGIN")  # one state of the file, also while another process writes
        try:
            check = "quick_check" if later else "integrity_check"
            (found,) = database.execute(f"PRAGMA {check}(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(f"malformed ({found})")
            for table in COLUMNS:
                if table not in later:
                    deque(checked_rows(folder, database, table), maxlen=0)
        finally:
            database.execute("ROLLBACK")


def checked_rows(
    folder: Path, database: sqlite3.Connection, table: str
) -> Iterator[tuple[Sequence[Any], str]]:
    """(values without the seal, the text of which the seal is a digest) of the rows of a table, in its order.

    A file of an older release has no seals to check.

    Raises:
        StoreError: a row is not what was written.
    """
    columns, sealed = COLUMNS[table], is_sealed(database)
    with explained(folder):
        for row in database.execute(f"SELECT {', '.join(columns)}{', seal' if sealed else ''} FROM {table}"):
            values = row[:-1] if sealed else row
            text = _encode([table, *values])
            if sealed and row[-1] != seal_of_text(text):
                raise StoreError(
                    f"{folder / FILE}: a row of the table {table} ({columns[0]} {values[0]!r:.40}) is not what was "
                    "written; the file is damaged: it was left as it is; restore a copy, or start over with another "
                    "--out"
                )
            yield values, text
