"""The tables of a run's SQLite file, their version, and the checks that a file is a run.

Everything is append-only: a trigger on every table refuses to change or delete a row. A completion is stored once under
its key (condition, prompt, sample). What many completions share (versions, hardware, digests of configuration and
checkpoints) is stored once, in the session that decoded them. Verdicts belong to a judge's name *and* identity: a judge
that changed adds verdicts, and the earlier ones stay. The table `sitting` has a row for each time that a judge became
the active one of its name. Every row ends with its seal, a digest of the other columns; see `seal`.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from eddecode.errors import StoreError

FILE = "run.sqlite"
APPLICATION = 0x45444443  # "EDDC": tells a run from another program's database
VERSION = 2
_SCHEMA = """
CREATE TABLE run (name TEXT PRIMARY KEY, value TEXT NOT NULL, seal TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE session (
    id INTEGER PRIMARY KEY, started TEXT NOT NULL, environment TEXT NOT NULL, seal TEXT NOT NULL);
CREATE TABLE prompt (
    prompt_index INTEGER PRIMARY KEY, prompt TEXT NOT NULL, digest TEXT NOT NULL, meta TEXT NOT NULL,
    seal TEXT NOT NULL);
CREATE TABLE condition (
    name TEXT PRIMARY KEY, position INTEGER NOT NULL UNIQUE, kind TEXT NOT NULL, alpha TEXT NOT NULL,
    system TEXT NOT NULL, transform TEXT NOT NULL, mitigation TEXT NOT NULL, model TEXT NOT NULL, seal TEXT NOT NULL)
    WITHOUT ROWID;
CREATE TABLE completion (
    id INTEGER PRIMARY KEY,
    condition TEXT NOT NULL REFERENCES condition, prompt_index INTEGER NOT NULL REFERENCES prompt,
    sample INTEGER NOT NULL,
    text TEXT, text_digest TEXT NOT NULL, token_ids TEXT, tokens INTEGER NOT NULL, finish_reason TEXT NOT NULL,
    base_logprob REAL, aligned_logprob REAL, implied_reward REAL, rewards BLOB,
    length INTEGER NOT NULL, perplexity REAL, distinct_1 REAL, distinct_2 REAL, repetition REAL, empty INTEGER NOT NULL,
    session INTEGER REFERENCES session, seal TEXT NOT NULL,
    UNIQUE (condition, prompt_index, sample));
CREATE TABLE judge (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, identity TEXT NOT NULL, seal TEXT NOT NULL,
    UNIQUE (name, identity));
CREATE TABLE sitting (
    id INTEGER PRIMARY KEY, judge INTEGER NOT NULL REFERENCES judge, session INTEGER, seal TEXT NOT NULL);
CREATE TABLE verdict (
    completion INTEGER NOT NULL REFERENCES completion, judge INTEGER NOT NULL REFERENCES judge,
    score REAL NOT NULL, flag INTEGER NOT NULL, label TEXT NOT NULL, reason TEXT NOT NULL, seal TEXT NOT NULL,
    PRIMARY KEY (completion, judge)) WITHOUT ROWID;
"""
COLUMNS: dict[str, tuple[str, ...]] = {
    "run": ("name", "value"),
    "session": ("id", "started", "environment"),
    "prompt": ("prompt_index", "prompt", "digest", "meta"),
    "condition": ("name", "position", "kind", "alpha", "system", "transform", "mitigation", "model"),
    "completion": (
        *("id", "condition", "prompt_index", "sample", "text", "text_digest", "token_ids", "tokens"),
        *("finish_reason", "base_logprob", "aligned_logprob", "implied_reward", "rewards"),
        *("length", "perplexity", "distinct_1", "distinct_2", "repetition", "empty", "session"),
    ),
    "judge": ("id", "name", "role", "identity"),
    "sitting": ("id", "judge", "session"),
    "verdict": ("completion", "judge", "score", "flag", "label", "reason"),
}  # table → its columns without the seal


def prepare(folder: Path, database: sqlite3.Connection) -> None:
    """Make the tables of a new file, in one transaction; check an existing one.

    Raises:
        StoreError: not a run, or one of another version.
    """
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA foreign_keys = ON")
    with closing(database.execute("SELECT count(*) FROM sqlite_master")) as cursor:
        new = cursor.fetchone()[0] == 0
    if not new:
        return check(folder, database)
    guards = "".join(
        f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table}"
        " BEGIN SELECT RAISE(ABORT, 'a run is append-only'); END;\n"
        for table in COLUMNS
        for verb in ("UPDATE", "DELETE")
    )
    database.executescript(
        f"BEGIN IMMEDIATE;{_SCHEMA}{guards}"
        f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
    )
    return None


def check(folder: Path, database: sqlite3.Connection) -> None:
    """Refuse a file that is not a run of this version.

    Raises:
        StoreError: not a run, or one of another version.
    """
    application = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION:
        raise StoreError(f"{folder / FILE} is a database, but not of an audit; choose another --out")
    if version != VERSION:
        older = "an older" if version < VERSION else "a later"
        raise StoreError(
            f"{folder / FILE} is of {older} eddecode: it has schema version {version}, and this eddecode reads "
            f"{VERSION}. It was left as it is: use the release that wrote it, or start over with another --out"
        )


def is_sealed(database: sqlite3.Connection) -> bool:
    """Whether the rows of this file have seals; those of older releases have none."""
    return any(row[1] == "seal" for row in database.execute("PRAGMA table_info(run)"))


def file_state(folder: Path) -> tuple[Any, ...]:
    """What tells one state of a run's file and of its log from another."""
    parts: list[Any] = [os.path.realpath(folder)]
    for name in (FILE, f"{FILE}-wal"):
        try:
            found = (folder / name).stat()
        except OSError:
            continue
        if found.st_size:  # an empty log says no more than none
            parts += [name, found.st_ino, found.st_mtime_ns, found.st_size]
    return tuple(parts)


def connect_read_only(folder: Path) -> sqlite3.Connection:
    """Open the file of a run for reading; another process may be writing to it.

    Raises:
        StoreError: not a run, one of another version, or a file that cannot be read.
    """
    writable = os.access(folder, os.W_OK)
    # Reading a file in WAL mode creates files beside it, which a folder without write access does not allow. Where a
    # process was killed, its log is still there: it must be read too, and SQLite may have to finish what was begun.
    left = any(_size(folder / f"{FILE}-{kind}") for kind in ("wal", "journal"))
    modes = ["mode=ro", "mode=rw"] if writable else ["mode=ro" if left else "mode=ro&immutable=1"]
    with explained(folder):
        for mode in modes:
            address = f"{(folder / FILE).resolve().as_uri()}?{mode}"
            database = sqlite3.connect(address, uri=True, isolation_level=None)
            try:
                check(folder, database)
                database.execute("PRAGMA query_only = ON")
                return database
            except sqlite3.OperationalError as error:
                database.close()
                if mode == modes[-1] or "readonly" not in str(error):
                    raise
    raise AssertionError("one of the modes returned or raised")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def stored_digest(folder: Path) -> str | None:
    """The digest of the run whose store is in the folder; None where there is no store, or the run has not begun.

    Raises:
        StoreError: as `connect_read_only`.
    """
    if not (folder / FILE).is_file():
        return None
    with closing(connect_read_only(folder)) as database, explained(folder):
        row = database.execute("SELECT value FROM run WHERE name = 'digest'").fetchone()
    return None if row is None else str(json.loads(row[0]))


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Raise SQLite's errors in the block as a StoreError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise explanation(folder, error) from error


def explanation(folder: Path, error: sqlite3.Error) -> StoreError:
    """An error of SQLite with a hint what to do."""
    message = str(error)
    if "full" in message:
        hint = "free some space and run the same command again: nothing that was reported is lost"
    elif "readonly" in message or "unable to open" in message:
        hint = "make the folder writable, or choose another with --out"
    elif any(word in message for word in ("malformed", "not a database", "decode", "no such", "unsupported")):
        hint = "the file is damaged: it was left as it is; restore a copy, or start over with another --out"
    elif "locked" in message:
        hint = "another program has the file open; close it and run the same command again"
    else:
        hint = "check the disk, and that no other program has the file open"
    return StoreError(f"{folder / FILE}: {message}; {hint}")
