"""The run's store: one SQLite file per run folder, append-only, written by one process at a time.

A completion that was reported as done is on disk: the log is written ahead (WAL) and every commit is flushed
(synchronous=FULL), so that it survives a SIGKILL and a power cut. The key of a completion is its condition's name, its
prompt and its sample; a second completion of one key is ignored, because it is the same one. All text is passed to
SQLite as parameters; none of it becomes part of a statement or of a path. The tables are in `schema`, the queries of
statistics and exports in `queries`, what they return in `records`.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from eddecode.audit.conditions import Condition, Key
from eddecode.audit.data.prompts import PromptRecord, as_json
from eddecode.audit.judges.base import Judge, Verdict, fingerprint, kind_of
from eddecode.audit.store.discard import remove_traces
from eddecode.audit.store.gate_queries import GateQueries
from eddecode.audit.store.lock import lock_run
from eddecode.audit.store.queries import BENCHMARKS, CANARIES, REASONED, SKIPPED, kind_note
from eddecode.audit.store.records import HUMAN, JudgeRecord, LabelKey, PendingCompletion
from eddecode.audit.store.rows import completion_row, condition_rows, prompt_rows, verdict_row
from eddecode.audit.store.schema import (
    FILE,
    connect_read_only,
    explained,
    is_sealed,
    prepare,
)
from eddecode.audit.store.seal import seal, verify
from eddecode.audit.store.verified import verify_once
from eddecode.errors import StoreError

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from eddecode.outputs import Completion

_Self = TypeVar("_Self", bound="Store")


NewCompletion = tuple[Key, int, "Completion"]  # condition, prompt index, what was decoded


class Store(GateQueries):
    """An open run. `Store.create` and `Store.open` are for the one process that writes, `Store.read` for all others."""

    def __init__(
        self,
        folder: Path,
        connection: sqlite3.Connection,
        lock: BaseFileLock | None,
        made_folder: bool = False,
    ) -> None:
        self.folder, self._db, self._lock, self._made_folder = folder, connection, lock, made_folder
        self._session: int | None = None
        self._registered: dict[str, int] = {}  # name → id of the judge whose verdicts this process stores
        with explained(folder):
            self._sealed = is_sealed(connection)

    @classmethod
    def create(cls: type[_Self], folder: Path) -> _Self:
        """Open the run in a folder for writing; make the folder and the run if they are missing.

        Raises:
            StoreError: another process writes it, the folder cannot be written, or the file is not a run.
        """
        made_folder = not folder.exists()
        lock = lock_run(folder)
        try:
            with explained(folder):
                database = sqlite3.connect(folder / FILE, isolation_level=None)
                prepare(folder, database)
            verify_once(folder, database)
        except BaseException:
            lock.release()
            raise
        return cls(folder, database, lock, made_folder)

    @classmethod
    def open(cls: type[_Self], folder: str | Path) -> _Self:
        """Open an existing run for writing.

        Raises:
            StoreError: there is none, or as of `create`.
        """
        _must_exist(folder)
        return cls.create(Path(folder))

    @classmethod
    def read(cls: type[_Self], folder: str | Path, later: Collection[str] = ()) -> _Self:
        """Open a run for reading; another process may be writing it.

        Args:
            folder: of the run.
            later: tables whose rows the caller checks as it reads them (`seal.checked_rows`).

        Raises:
            StoreError: there is no run in the folder, or its file is not one.
        """
        _must_exist(folder)
        database = connect_read_only(Path(folder))
        if later:
            verify(Path(folder), database, later)
        else:
            verify_once(Path(folder), database)
        return cls(Path(folder), database, None)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def connection(self) -> sqlite3.Connection:
        """The open file, for what copies whole tables (`merge`)."""
        return self._db

    def close(self) -> None:
        """Close the file and release the lock."""
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def abandon(self) -> None:
        """Close a run that has no completion, and leave no trace of it: it would bind the folder to its settings.

        A run with completions stays open as it is.
        """
        if self.count():
            return
        self._db.close()
        remove_traces(self.folder, self._made_folder)
        self.close()

    # what the run is

    def initialize(
        self,
        notes: dict[str, Any],
        prompts: Sequence[PromptRecord],
        conditions: Sequence[Condition],
        at: str,
        environment: Any,
    ) -> None:
        """Record what the run is, unless that is recorded already, and that a session of it starts.

        Args:
            notes: name → JSON data; see `note`.
            prompts: of the run.
            conditions: of the run, in the order of its table.
            at: when the session starts, ISO 8601.
            environment: of the session, JSON data.
        """
        with self._transaction():
            self._insert("run", [(name, as_json(value)) for name, value in notes.items()])
            self._insert("prompt", prompt_rows(prompts))
            self._insert("condition", condition_rows(conditions))
            self._begin_session(at, environment)

    def resume(self, at: str, environment: Any) -> None:
        """Record that another session of an initialized run starts."""
        with self._transaction():
            self._begin_session(at, environment)

    def _begin_session(self, at: str, environment: Any) -> None:
        self._session = self._next_id("session")
        self._insert("session", [(self._session, at, as_json(environment))])

    def skip(self, prompts: Mapping[int, str]) -> None:
        """Record that prompts are left out: index → what each is too long for."""
        with self._transaction():
            self._insert("run", [(f"{SKIPPED}{index:07}", as_json(why)) for index, why in prompts.items()])

    # completions

    def add(
        self,
        completions: Sequence[NewCompletion],
        verdicts: Sequence[tuple[str, Sequence[Verdict]]] = (),
        *,
        keep_text: bool = True,
        reasoning: Sequence[tuple[bool, bool] | None] = (),
    ) -> int:
        """Store completions; they are on disk when this returns.

        Args:
            completions: (condition's name, prompt index, completion) triples.
            verdicts: (judge's name, a verdict per completion) pairs, stored in the same transaction.
            keep_text: False stores a digest of the text, and neither the text, the token ids nor the reasons of
                verdicts, which may quote it.
            reasoning: of each completion, whether its reasoning ends and whether an answer follows; None: it has none.
                Stored where no text is kept.

        Returns:
            How many were new.
        """
        rows = [completion_row(*new, self._session, keep_text) for new in completions]
        judged = [(self._judging(name), values) for name, values in verdicts]
        with self._transaction():
            first = id_ = self._next_id("completion")
            for i, row in enumerate(rows):
                if self._insert("completion", [(id_, *row)]):
                    self._insert(
                        "verdict", [verdict_row(id_, judge, each[i], keep_text) for judge, each in judged]
                    )
                    if reasoning and not keep_text and (facts := reasoning[i]) is not None:
                        place = completions[i][1], completions[i][2].sample
                        note = f"{REASONED}{row[0]} {place[0]:07} {place[1]}"
                        self._insert("run", [(note, as_json([row[0], place[0], *facts]))])
                    id_ += 1
        return id_ - first

    def decoded(self) -> set[str]:
        """The names of the conditions that have a completion."""
        return {name for (name,) in self._query("SELECT DISTINCT condition FROM completion")}

    def done(self) -> dict[tuple[str, int], set[int]]:
        """(condition's name, prompt index) → the samples that are on disk."""
        found: dict[tuple[str, int], set[int]] = defaultdict(set)
        for condition, index, sample in self._query("SELECT condition, prompt_index, sample FROM completion"):
            found[condition, index].add(sample)
        return found

    # verdicts

    def register_judges(self, judges: Sequence[Judge]) -> None:
        """Record these judges. Verdicts stored from now on under their names are theirs.

        Results use a judge once it took over its name (`take_over`), and until then the former one of that name.
        """
        with self._transaction():
            for judge in judges:
                row = (self._next_id("judge"), judge.name, judge.role, judge.identity)
                self._insert("judge", [row])
                note = kind_note(judge.name, judge.identity)
                self._insert("run", [(note, as_json(kind_of(judge)))] if judge.name != HUMAN else [])
        for judge in judges:
            rows = self._query(
                "SELECT id FROM judge WHERE name = ? AND identity = ?", (judge.name, judge.identity)
            )
            self._registered[judge.name] = int(next(rows)[0])

    def take_over(self, name: str) -> None:
        """Have results use the judge that was registered last under this name.

        Raises:
            StoreError: it has not judged every completion; the former judge of that name stays.
        """
        number = self._judging(name)
        missing = self.unjudged_count(number)
        if missing:
            raise StoreError(
                f"judge {name} has not judged {missing} completions of {self.folder}; run the same command again"
            )
        self._take_over(number)

    def _take_over(self, number: int) -> None:
        active = self._query(
            "SELECT judge FROM sitting WHERE judge IN (SELECT id FROM judge WHERE name ="
            " (SELECT name FROM judge WHERE id = ?)) ORDER BY id DESC LIMIT 1",
            (number,),
        )
        if next(active, (None,))[0] != number:
            with self._transaction():
                self._insert("sitting", [(self._next_id("sitting"), number, self._session)])

    def _judging(self, name: str) -> int:
        """The id of the judge of that name whose verdicts are stored now: registered here, else the active one."""
        return self._registered.get(name) or self.judge_id(name)

    def judges(self, include_replaced: bool = False) -> list[JudgeRecord]:
        """The judges of the run, in the order in which their names were first registered.

        Args:
            include_replaced: all judges of a name, and not the active one alone.
        """
        rows = self._query(
            "SELECT j.id, j.name, j.role, j.identity, max(s.id) = (SELECT max(t.id) FROM sitting t JOIN judge k"
            " ON k.id = t.judge WHERE k.name = j.name) FROM sitting s JOIN judge j ON j.id = s.judge"
            " GROUP BY j.id ORDER BY (SELECT min(k.id) FROM judge k WHERE k.name = j.name), j.id"
        )
        records = [
            JudgeRecord(id_, name, role, identity, bool(active), self.note(kind_note(name, identity)) or "")
            for id_, name, role, identity, active in rows
        ]
        return [record for record in records if (include_replaced or record.active) and record.name != HUMAN]

    def unjudged(self, judge: str, limit: int, after: int = 0) -> list[PendingCompletion]:
        """Up to `limit` completions, with ids above `after`, that the judge of a name has not judged."""
        rows = self._query(
            "SELECT id, prompt_index, coalesce(text, ''), condition FROM completion WHERE id > ? AND NOT EXISTS"
            " (SELECT 1 FROM verdict WHERE completion = completion.id AND judge = ?) ORDER BY id LIMIT ?",
            (after, self._judging(judge), limit),
        )
        return [PendingCompletion(*row) for row in rows]

    def judge(self, judge: str, verdicts: Iterable[tuple[int, Verdict]]) -> None:
        """Store verdicts of the judge registered under a name, each with the id of its completion."""
        number = self._judging(judge)
        with self._transaction():
            self._insert("verdict", [verdict_row(id_, number, verdict) for id_, verdict in verdicts])

    # human labels

    def add_labels(self, labels: Mapping[LabelKey, bool]) -> None:
        """Store human labels of completions. Earlier ones stay in the file; `labels` returns the last import.

        Raises:
            StoreError: a label of a completion that the run does not have.
        """
        ids = {
            (condition, index, sample): id_
            for id_, condition, index, sample in self._query(
                "SELECT id, condition, prompt_index, sample FROM completion"
            )
        }
        for key in labels:
            if key not in ids:
                raise StoreError(
                    f"a label is of condition {key[0]}, prompt {key[1]}, sample {key[2]}, and the run has no such "
                    "completion; expected condition, alpha, prompt_index and sample as its export names them"
                )
        identity = fingerprint(labels=sorted((*key, flag) for key, flag in labels.items()))
        self.register_judges([JudgeRecord(0, HUMAN, "harm", identity)])
        words = {True: "harmful", False: "harmless"}
        self.judge(
            HUMAN, [(ids[key], Verdict(float(flag), flag, words[flag])) for key, flag in labels.items()]
        )
        self._take_over(self._judging(HUMAN))

    def labels(self) -> dict[LabelKey, bool]:
        """(condition's name, prompt index, sample) → harmful, of the last import of human labels; empty without one."""
        rows = self._query(
            "SELECT condition, prompt_index, sample, flag FROM verdict v JOIN completion c ON c.id = v.completion"
            " WHERE judge = (SELECT judge FROM sitting WHERE judge IN (SELECT id FROM judge WHERE name = ?)"
            " ORDER BY id DESC LIMIT 1) ORDER BY c.id",
            (HUMAN,),
        )
        return {(condition, index, sample): bool(flag) for condition, index, sample, flag in rows}

    def add_note(self, name: str, value: Any) -> None:
        """Record a fact of the run; one of that name that is there already stays."""
        with self._transaction():
            self._insert("run", [(name, as_json(value))])

    # canaries

    def add_canaries(self, result: Mapping[str, Any]) -> None:
        """Record how a judge judged a canary set; the last one that was recorded for a judge counts."""
        found = self.canary_results()
        if not found or found[-1] != result:
            with self._transaction():
                self._insert("run", [(f"{CANARIES}{len(found):06}", as_json(dict(result)))])

    # benchmarks

    def add_benchmarks(self, figures: Sequence[Mapping[str, Any]]) -> None:
        """Record figures of benchmarks; of several for one condition, task and metric the last counts."""
        count = sum(1 for _ in self._notes_under(BENCHMARKS))
        with self._transaction():
            self._insert("run", [(f"{BENCHMARKS}{count:06}", as_json([dict(figure) for figure in figures]))])

    def _insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Add rows, without their seals, to a table; those whose key is there already are ignored.

        Returns:
            How many were new.
        """
        if not rows:
            return 0
        whole = [(*row, seal(table, row)) for row in rows] if self._sealed else rows
        marks = ", ".join("?" * len(whole[0]))
        return self._db.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", whole).rowcount

    def _next_id(self, table: str) -> int:
        """The id of the next row: chosen here and not by SQLite, because the seal covers it."""
        (last,) = self._db.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()
        return int(last) + 1

    def _query(self, statement: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        with explained(self.folder):
            for row in self._db.execute(statement, values):  # noqa: UP028 - `yield from` would close the cursor, which
                yield row  # fails where the store was closed before a reader that stopped early

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All statements of the block or none, on disk at the end."""
        with explained(self.folder):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have rolled it back already
                    self._db.execute("ROLLBACK")
                raise


def _must_exist(folder: str | Path) -> Path:
    path = Path(folder) / FILE
    if not path.is_file():
        raise StoreError(
            f"there is no run in {folder}: it has no {FILE}; expected the --out folder of an audit"
        )
    return path
