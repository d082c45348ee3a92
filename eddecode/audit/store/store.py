"""The run's store: one SQLite file per run folder, append-only, written by one process at a time.

A completion that was reported as done is on disk: the log is written ahead (WAL) and every commit is flushed
(synchronous=FULL), so that neither a SIGKILL nor a power cut takes it back. The key of a completion is its condition's
name, its prompt and its sample; a second completion of one key is ignored, because it is the same one. All text goes in
as parameters, none of it into SQL and none into a path. The tables are in `schema`, questions that statistics ask in
`views`.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from eddecode.audit.conditions import Condition, Key, condition_name
from eddecode.audit.data.prompts import PromptRecord, as_json
from eddecode.audit.judges.base import Judge, Role, Verdict, fingerprint
from eddecode.audit.store.lock import lock_run
from eddecode.audit.store.queries import Views
from eddecode.audit.store.schema import FILE, check, explanation, prepare
from eddecode.audit.text_quality import measure
from eddecode.errors import StoreError

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from eddecode.outputs import Completion

_COLUMNS = (
    *("condition", "prompt_index", "sample", "text", "text_digest", "token_ids", "tokens", "finish_reason"),
    *("base_logprob", "aligned_logprob", "implied_reward", "rewards"),
    *("length", "perplexity", "distinct_1", "distinct_2", "repetition", "empty", "session"),
)
_MARKS = ", ".join("?" * len(_COLUMNS))
HUMAN = "human"  # the name under which labels of people are kept; no judge of an audit
LabelKey = tuple[str, int, int]  # condition's name, prompt index, sample
_Self = TypeVar("_Self", bound="Store")


@dataclass(frozen=True)
class Unjudged:
    """A stored completion that a judge has not seen; `text` is empty where the run keeps none."""

    id: int
    prompt_index: int
    text: str


@dataclass(frozen=True)
class JudgeRecord:
    """A judge as a run remembers it: not to be called, but to be named.

    Attributes:
        id: in this run's file.
        name, role, identity: as of the judge.
        current: whether it speaks under its name: of several with one name, the one that sat last.
    """

    id: int
    name: str
    role: Role
    identity: str
    current: bool = True

    def __call__(self, cases: Sequence[Any]) -> list[Verdict]:
        """Always an error: a record has no words and no model."""
        raise StoreError(f"judge {self.name} of a finished run was asked for verdicts; name it with --judge")


Draft = tuple[Key, int, "Completion"]  # condition, prompt index, what was decoded


class Store(Views):
    """An open run. `Store.create` for the process that writes, `Store.read` for those that look."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: BaseFileLock | None) -> None:
        self.folder, self._db, self._lock = folder, connection, lock
        self._session: int | None = None

    @classmethod
    def create(cls: type[_Self], folder: Path) -> _Self:
        """Open the run in a folder for writing, making both where they are missing.

        Raises:
            StoreError: another process has it, the folder cannot be written, or the file is not a run.
        """
        lock = lock_run(folder)
        try:
            with explained(folder):
                database = sqlite3.connect(folder / FILE, isolation_level=None)
                prepare(folder, database)
        except BaseException:
            lock.release()
            raise
        return cls(folder, database, lock)

    @classmethod
    def open(cls: type[_Self], folder: str | Path) -> _Self:
        """Open a run that is there, for writing.

        Raises:
            StoreError: there is none, or as `create`.
        """
        _must_exist(folder)
        return cls.create(Path(folder))

    @classmethod
    def read(cls: type[_Self], folder: str | Path) -> _Self:
        """Open a run for looking at it; it may still be running.

        Raises:
            StoreError: there is no run in the folder, or its file is not one.
        """
        path = _must_exist(folder)
        # Reading a WAL file makes files beside it; in a folder that cannot be written it is opened as it lies.
        mode = "mode=ro" if os.access(folder, os.W_OK) else "mode=ro&immutable=1"
        with explained(Path(folder)):
            database = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, isolation_level=None)
            check(Path(folder), database)
        return cls(Path(folder), database, None)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file and of the lock."""
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    # what the run is

    def begin(
        self,
        notes: dict[str, Any],
        prompts: Sequence[PromptRecord],
        conditions: Sequence[Condition],
        at: str,
        environment: Any,
    ) -> None:
        """Write down what the run is, unless that was done, and that a session of it starts."""
        listed = [
            (c.name, i, c.kind, c.alpha, c.system, c.transform, c.mitigation, c.model)
            for i, c in enumerate(conditions)
        ]
        with self._transaction():
            self._many("run", 2, [(name, as_json(value)) for name, value in notes.items()])
            self._many(
                "prompt", 4, [(p.index, as_json(p.prompt), p.digest, as_json(p.meta)) for p in prompts]
            )
            self._many("condition", 8, listed)
            self._begin_session(at, environment)

    def resume(self, at: str, environment: Any) -> None:
        """Write down that another session of a run that was begun starts."""
        with self._transaction():
            self._begin_session(at, environment)

    def _begin_session(self, at: str, environment: Any) -> None:
        cursor = self._db.execute(
            "INSERT INTO session (started, environment) VALUES (?, ?)", (at, as_json(environment))
        )
        self._session = cursor.lastrowid

    # completions

    def add(
        self,
        completions: Sequence[Draft],
        verdicts: Sequence[tuple[str, Sequence[Verdict]]] = (),
        *,
        keep_text: bool = True,
    ) -> int:
        """Keep completions; they are on disk when this returns.

        Args:
            completions: (condition name, prompt index, completion) triples.
            verdicts: judge's name → a verdict per completion, kept in the same transaction; without text, without
                the reasons, which may quote it.
            keep_text: False keeps a digest of the text and of the token ids, and not these themselves.

        Returns the number that were new.
        """
        rows = [_row(*draft, self._session, keep_text) for draft in completions]
        judged = [(self.judge_id(name), said) for name, said in verdicts]
        insert = f"INSERT OR IGNORE INTO completion ({', '.join(_COLUMNS)}) VALUES ({_MARKS})"
        added = 0
        with self._transaction():
            for i, row in enumerate(rows):
                cursor = self._db.execute(insert, row)
                if cursor.rowcount == 1 and cursor.lastrowid is not None:
                    id_, added = cursor.lastrowid, added + 1
                    fresh = [_verdict_row(id_, judge, each[i], keep_text) for judge, each in judged]
                    self._many("verdict", 6, fresh)
        return added

    def done(self) -> dict[tuple[str, int], set[int]]:
        """(condition name, prompt index) → the samples that are on disk."""
        found: dict[tuple[str, int], set[int]] = defaultdict(set)
        for condition, index, sample in self._query("SELECT condition, prompt_index, sample FROM completion"):
            found[condition, index].add(sample)
        return found

    # verdicts

    def seat(self, judges: Sequence[Judge]) -> None:
        """Write down that these judges sit: from now on each speaks under its name."""
        with self._transaction():
            for judge in judges:
                self._db.execute(
                    "INSERT OR IGNORE INTO judge (name, role, identity) VALUES (?, ?, ?)",
                    (judge.name, judge.role, judge.identity),
                )
            sat = {record.name: record.identity for record in self.judges()}
            for judge in judges:
                if sat.get(judge.name) != judge.identity:
                    self._db.execute(
                        "INSERT INTO sitting (judge, session) SELECT id, ? FROM judge WHERE name = ? AND identity = ?",
                        (self._session, judge.name, judge.identity),
                    )

    def judges(self, former: bool = False) -> list[JudgeRecord]:
        """The judges that sat, in the order in which they first did; one for each name, or with `former` all."""
        rows = self._query(
            "SELECT j.id, j.name, j.role, j.identity, max(s.id) = (SELECT max(t.id) FROM sitting t JOIN judge k"
            " ON k.id = t.judge WHERE k.name = j.name) FROM sitting s JOIN judge j ON j.id = s.judge"
            " GROUP BY j.id ORDER BY (SELECT min(k.id) FROM judge k WHERE k.name = j.name), j.id"
        )
        records = [
            JudgeRecord(id_, name, role, identity, bool(last)) for id_, name, role, identity, last in rows
        ]
        return [record for record in records if (former or record.current) and record.name != HUMAN]

    def unjudged(self, judge: str, limit: int, after: int = 0) -> list[Unjudged]:
        """Up to `limit` completions, with ids above `after`, that the judge who sits under a name has not seen."""
        rows = self._query(
            "SELECT id, prompt_index, coalesce(text, '') FROM completion WHERE id > ? AND NOT EXISTS"
            " (SELECT 1 FROM verdict WHERE completion = completion.id AND judge = ?) ORDER BY id LIMIT ?",
            (after, self.judge_id(judge), limit),
        )
        return [Unjudged(*row) for row in rows]

    def judge(self, judge: str, verdicts: Iterable[tuple[int, Verdict]]) -> None:
        """Keep verdicts of the judge who sits under a name on completions, given by their id."""
        number = self.judge_id(judge)
        with self._transaction():
            self._many("verdict", 6, [_verdict_row(id_, number, said) for id_, said in verdicts])

    # people

    def add_labels(self, labels: Mapping[LabelKey, bool]) -> None:
        """Keep what people say of completions; it replaces nothing, and counts from now on.

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
        self.seat([JudgeRecord(0, HUMAN, "harm", identity)])
        words = {True: "harmful", False: "harmless"}
        self.judge(
            HUMAN, [(ids[key], Verdict(float(flag), flag, words[flag])) for key, flag in labels.items()]
        )

    def labels(self) -> dict[LabelKey, bool]:
        """(condition name, prompt index, sample) → harmful, as people said last; empty where nobody did."""
        rows = self._query(
            "SELECT condition, prompt_index, sample, flag FROM verdict v JOIN completion c ON c.id = v.completion"
            " WHERE judge = (SELECT judge FROM sitting WHERE judge IN (SELECT id FROM judge WHERE name = ?)"
            " ORDER BY id DESC LIMIT 1) ORDER BY c.id",
            (HUMAN,),
        )
        return {(condition, index, sample): bool(flag) for condition, index, sample, flag in rows}

    def _many(self, table: str, columns: int, rows: Sequence[tuple[Any, ...]]) -> None:
        marks = ", ".join("?" * columns)
        self._db.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", rows)

    def _query(self, statement: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        with explained(self.folder):
            yield from self._db.execute(statement, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or none of it, and on disk at the end."""
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


def _row(key: Key, index: int, c: Completion, session: int | None, keep_text: bool) -> tuple[Any, ...]:
    """A completion in the order of _COLUMNS."""
    ids = [int(token) for token in c.token_ids]
    kept = as_json(ids)
    digest = hashlib.blake2b(c.text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    said = measure(c.text, ids, c.finish_reason, c.base_logprob)
    return (
        *(
            condition_name(key),
            index,
            c.sample,
            c.text if keep_text else None,
            digest,
            kept if keep_text else None,
        ),
        *(len(ids), c.finish_reason, c.base_logprob, c.aligned_logprob, c.implied_reward, _rewards(c)),
        *(
            said.length,
            said.perplexity,
            said.distinct_1,
            said.distinct_2,
            said.repetition,
            int(said.empty),
            session,
        ),
    )


def _rewards(c: Completion) -> bytes | None:
    """log p_aligned − log p_base per token, nats, as little-endian float32; None if it was not asked for."""
    tokens = getattr(c, "logprobs", None)
    if tokens is None:
        return None
    values = array("f", (token.aligned - token.base for token in tokens))
    if values.itemsize != 4 or array("H", [1]).tobytes() != b"\1\0":
        values.byteswap()
    return values.tobytes()


def _verdict_row(completion: int, judge: int, v: Verdict, keep_text: bool = True) -> tuple[Any, ...]:
    return (completion, judge, v.score, int(v.flag), v.label, v.reason if keep_text else "")


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what SQLite says into what to do about it."""
    try:
        yield
    except sqlite3.Error as error:
        raise explanation(folder, error) from error
