"""The stores of all shards of an audit, joined to the store of the whole run.

The rows are copied under new ids, in the order of the shards. Nothing is computed anew but seals: a row is read once,
its old seal is checked, and its new one made of the same text with the new ids in it. The file takes its name when it
is complete on disk, so that it needs no journal before.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from eddecode.audit.store.grow import add_rows, remove_part, rows_of
from eddecode.audit.store.lock import lock_run
from eddecode.audit.store.queries import REASONED, SHARD_NOTE, SKIPPED
from eddecode.audit.store.schema import COLUMNS, FILE, explained, prepare
from eddecode.audit.store.seal import checked_rows, seal_of_text
from eddecode.audit.store.store import Store
from eddecode.audit.store.verified import trust
from eddecode.errors import StoreError

_WORK = ("completion", "verdict")  # the tables that grow with the audit: checked as they are copied
_WITHOUT_JOURNAL = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; PRAGMA cache_size = -131072;
"""


def merge_stores(parts: Sequence[Path], out: Path) -> None:
    """Join the stores of all shards of one audit.

    Args:
        parts: folders of the shards, in any order.
        out: folder of the whole run; it is made, and must not hold a run.

    Raises:
        StoreError: a shard is missing, doubled, unfinished, of another audit or of another division, or judged by
            other judges; or `out` holds a run.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(Store.read(part, later=_WORK)) for part in parts]
        ordered = [store for _, store in sorted(_numbered(stores), key=lambda pair: pair[0])]
        _check_judges(ordered)
        lock = lock_run(out)
        stack.callback(lock.release)
        if (out / FILE).exists():
            raise StoreError(f"{out} holds a run already; choose another --out, or delete it first")
        unfinished = out / f"{FILE}.merged"
        remove_part(unfinished)
        try:
            with explained(out), closing(sqlite3.connect(unfinished, isolation_level=None)) as new:
                prepare(out, new)
                new.executescript(_WITHOUT_JOURNAL)
                new.execute("BEGIN IMMEDIATE")
                _copy(ordered, new)
                new.execute("COMMIT")
                new.execute("PRAGMA journal_mode = WAL")
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, out / FILE)
            trust(out)
        finally:
            remove_part(unfinished)


def _numbered(stores: Sequence[Store]) -> list[tuple[int, Store]]:
    """Each store with the number of its shard, after a check that they are all shards of one audit."""
    first, found = stores[0], dict[int, Store]()
    for store in stores:
        shard = store.note(SHARD_NOTE)
        if shard is None:
            raise StoreError(f"{store.folder} holds no shard; expected folders that `audit --shard` wrote")
        if store.note("digest") != first.note("digest"):
            raise StoreError(f"{store.folder} is a shard of another audit than {first.folder}")
        if shard["of"] != first.note(SHARD_NOTE)["of"]:
            raise StoreError(
                f"{store.folder} is shard {shard['number']} of {shard['of']}, and {first.folder} is one of "
                f"{first.note(SHARD_NOTE)['of']}; give the shards of one division"
            )
        if shard["number"] in found:
            raise StoreError(
                f"shard {shard['number']} is there twice: {found[shard['number']].folder} and {store.folder}"
            )
        if store.count() < store.expected():
            raise StoreError(
                f"shard {shard['number']} in {store.folder} is not finished: {store.count():,} of "
                f"{store.expected():,} completions; run its command again"
            )
        found[shard["number"]] = store
    of = first.note(SHARD_NOTE)["of"]
    missing = [number for number in range(1, of + 1) if number not in found]
    if missing:
        names = ", ".join(f"{number}/{of}" for number in missing[:20])
        raise StoreError(
            f"{len(missing)} of {of} shards are missing: {names}{' …' if len(missing) > 20 else ''}"
        )
    prompts = sum(len(store.prompts()) for store in stores)
    if prompts != first.note(SHARD_NOTE)["prompts"]:
        raise StoreError(f"the shards hold {prompts} prompts; expected {first.note(SHARD_NOTE)['prompts']}")
    return list(found.items())


def _check_judges(stores: Sequence[Store]) -> None:
    """Every shard must be judged by the same judges: verdicts of two are no column of one."""
    first = {(judge.name, judge.identity) for judge in stores[0].judges()}
    for store in stores:
        differing = first ^ {(judge.name, judge.identity) for judge in store.judges()}
        if differing:
            names = ", ".join(sorted({name for name, _ in differing}))
            raise StoreError(
                f"{store.folder} and {stores[0].folder} are judged by other judges ({names}); run the audit command "
                "of each shard again, with the same judges"
            )


def _copy(stores: Sequence[Store], new: sqlite3.Connection) -> None:
    first = stores[0].connection
    add_rows(new, "run", (row for row in rows_of(first, "run") if row[0] != SHARD_NOTE))
    others = (row for store in stores[1:] for row in rows_of(store.connection, "run"))
    add_rows(new, "run", (row for row in others if str(row[0]).startswith((SKIPPED, REASONED))))
    add_rows(new, "condition", rows_of(first, "condition"))
    every = (row for store in stores for row in rows_of(store.connection, "prompt"))
    add_rows(new, "prompt", sorted(every))
    judges = _copy_judges(stores, new)
    sessions = completions = 0
    for store, ids in zip(stores, judges, strict=True):
        _copy_work(store, new, sessions, completions, ids)
        sessions, completions = (_last(new, table) for table in ("session", "completion"))


def _copy_work(
    store: Store, new: sqlite3.Connection, sessions: int, completions: int, judges: dict[int, int]
) -> None:
    """Copy what one shard decoded, with ids moved up by those that are taken, and with the new ids of its judges."""
    old = store.connection
    add_rows(new, "session", ((id_ + sessions, *rest) for id_, *rest in rows_of(old, "session")))
    copied = _insert(new, "completion", _moved_completions(store, sessions, completions))
    if copied != store.count():
        raise StoreError(
            f"{store.folder / FILE} is damaged: it has {copied:,} completions, and its index {store.count():,}; "
            "restore a copy, or decode the shard again into another folder"
        )
    _insert(new, "verdict", _moved_verdicts(store, completions, judges))


def _insert(new: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]]) -> int:
    """Add rows that have their seals; returns how many."""
    marks = ", ".join("?" * (len(COLUMNS[table]) + 1))
    return new.executemany(f"INSERT INTO {table} VALUES ({marks})", rows).rowcount


def _moved_completions(store: Store, sessions: int, completions: int) -> Iterator[tuple[Any, ...]]:
    """The completions of a shard with new ids and new seals.

    The text of a row begins with the table and the id, and ends with the session; see `seal.text_of_read`.
    """
    head = '["completion",'
    tails = dict[
        int | None, tuple[int, int | None, str]
    ]()  # session → (length of its tail, its new id, new tail)
    for values, text in checked_rows(store.folder, store.connection, "completion"):
        id_, session = values[0], values[-1]
        if session not in tails:
            moved = None if session is None else session + sessions
            tails[session] = len(_tail(session)), moved, _tail(moved)
        length, moved, tail = tails[session]
        new = id_ + completions
        middle = text[len(head) + len(str(id_)) : -length]
        yield new, *values[1:-1], moved, seal_of_text(f"{head}{new}{middle}{tail}")


def _moved_verdicts(store: Store, completions: int, judges: dict[int, int]) -> Iterator[tuple[Any, ...]]:
    """The verdicts of a shard with the new ids of completions and judges, with which their texts begin; new seals."""
    head = '["verdict",'
    for (completion, judge, *values), text in checked_rows(store.folder, store.connection, "verdict"):
        ids = completion + completions, judges[judge]
        rest = text[len(f"{head}{completion},{judge}") :]
        yield *ids, *values, seal_of_text(f"{head}{ids[0]},{ids[1]}{rest}")


def _tail(session: int | None) -> str:
    """How the text of a row ends whose last column is a session."""
    return f",{'null' if session is None else session}]"


def _copy_judges(stores: Sequence[Store], new: sqlite3.Connection) -> list[dict[int, int]]:
    """Copy the judges, each once; returns per store the new id of each of its judges. The first store's sittings hold
    for the run: all stores have the same active judges."""
    known: dict[tuple[str, str], int] = {}
    maps = []
    for store in stores:
        ids = {}
        for id_, name, role, identity in rows_of(store.connection, "judge"):
            if (name, identity) not in known:
                known[name, identity] = len(known) + 1
                add_rows(new, "judge", [(known[name, identity], name, role, identity)])
            ids[id_] = known[name, identity]
        maps.append(ids)
    sittings = rows_of(stores[0].connection, "sitting")
    add_rows(new, "sitting", ((id_, maps[0][judge], session) for id_, judge, session in sittings))
    return maps


def _last(database: sqlite3.Connection, table: str) -> int:
    return int(database.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0])
