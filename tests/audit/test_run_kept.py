"""What a run keeps through kills, full disks and damage, and what one without text keeps."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit.decode import Progress
from eddecode.audit.export.formats import export_jsonl, export_to
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.run import rejudge
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError, StoreError
from helpers.stub_runs import config, exported, run
from helpers.stub_sampler import StubSampler

KILLS = 20
KILLED: dict[str, Any] = {"alphas": "0.3,1"}  # a few batches of completions


def tables(folder: Path) -> tuple[list[str], str]:
    """Everything that a run says of its completions, and its summary."""
    return list(export_jsonl(folder)), (folder / "summary.json").read_text()


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of some hundred completions are written in several groups, as longer ones are."""
    monkeypatch.setattr("eddecode.audit.decode._COMMIT_ROWS", 64)


# kills


def forked(folder: Path, target: int | None) -> tuple[int, list[int]]:
    """Run the audit in a child that kills itself with SIGKILL at its target-th call; (exit status, event counts)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # nothing may leave this branch: it is a copy of the whole test process
        events = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal events
            events += 1
            if events == target:
                os.kill(os.getpid(), signal.SIGKILL)

        def note(progress: Progress) -> None:
            os.write(writer, f"{events}\n".encode())

        try:
            sys.setprofile(count)
            run(config(folder, **KILLED), on_progress=note)
            os.write(writer, f"{events}\n".encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        counts = [int(line) for line in pipe.read().split()]
    return os.waitpid(child, 0)[1], counts


def test_killed_twenty_times_at_random_moments(tmp_path: Path) -> None:
    """Each kill is at a random call of the program, from its first to its last; each rerun ends in the same bytes.

    The moments are drawn over calls and not over time, so that a busy machine changes nothing.
    """
    run(config(tmp_path / "alone", **KILLED))
    wanted = tables(tmp_path / "alone")
    status, counts = forked(tmp_path / "counted", None)
    assert status == 0
    judged, last = counts[-2], counts[-1]  # calls until all is judged, and until the end
    rng = random.Random(4)
    moments = [rng.randrange(1, judged) for _ in range(KILLS - 4)] + [
        rng.randrange(judged, last) for _ in range(4)
    ]
    on_disk = []
    for number, moment in enumerate(moments):
        folder = tmp_path / f"killed-{number}"
        status, counted = forked(folder, moment)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, (moment, counts)
        if (folder / "run.sqlite").is_file() and counted:
            with Store.read(folder) as store:
                on_disk.append(store.count())
        run(config(folder, **KILLED))
        assert tables(folder) == wanted, moment
    assert len(set(on_disk)) >= 3  # they were spread over the run, not all before or after it


# faults


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says that the disk is full when a page limit is reached: the same error at the same place."""
    from eddecode.audit.store import schema, store

    reported: list[int] = []

    def prepare(folder: Path, database: sqlite3.Connection) -> None:
        schema.prepare(folder, database)
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages + 3}")

    with monkeypatch.context() as patch:
        patch.setattr(store, "prepare", prepare)
        with pytest.raises(StoreError, match=r"full; free some space .* nothing that was reported is lost"):
            run(config(tmp_path / "full"), on_progress=lambda p: reported.append(p.done))
    with Store.read(tmp_path / "full") as read:
        assert reported[-1] <= read.count() < 180
    run(config(tmp_path / "full"))
    run(config(tmp_path / "alone"))
    assert tables(tmp_path / "full") == tables(tmp_path / "alone")


def test_a_damaged_file_is_left_as_it_is(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    path = tmp_path / "run" / "run.sqlite"
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(random.Random(0).randbytes(len(content) - 4096))
    path.write_bytes(content)
    with pytest.raises(StoreError, match="the file is damaged: it was left as it is"):
        run(config(tmp_path / "run"))
    with pytest.raises(StoreError, match="the file is damaged"):
        list(export_jsonl(tmp_path / "run"))
    assert path.read_bytes() == bytes(content)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(tmp_path / "run"))
    before = (tmp_path / "run" / "run.sqlite").read_bytes()
    opened, opened_by_number = Path.open, os.open

    def refuse(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode not in {"r", "rb"}:
            raise PermissionError(13, "Permission denied")
        return opened(path, mode, *arguments, **options)

    def refuse_by_number(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied")
        return opened_by_number(path, flags, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        patch.setattr(os, "open", refuse_by_number)
        with pytest.raises(
            StoreError, match=r"cannot be written \(Permission denied\); choose another with --out"
        ):
            run(config(tmp_path / "run"))
        with pytest.raises(StoreError, match="the run is untouched"):
            list(export_to(tmp_path / "run", "jsonl", tmp_path / "x.jsonl"))
    assert (tmp_path / "run" / "run.sqlite").read_bytes() == before
    monkeypatch.setattr(os, "access", lambda *_: False)  # and one that can only be read can be read
    assert len(list(export_jsonl(tmp_path / "run"))) == 180


def test_an_older_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as database:
        database.execute("PRAGMA user_version = 1")
    with pytest.raises(StoreError, match=r"is of an older eddecode: .* version 1, and this eddecode reads 2"):
        run(config(tmp_path / "run"))


def test_what_a_killed_process_left_half_done_can_be_read(tmp_path: Path) -> None:
    """SQLite's rollback journal of a transaction that never ended, which a reader without write access cannot undo."""
    run(config(tmp_path / "run"))
    wanted = list(export_jsonl(tmp_path / "run"))
    child = os.fork()
    if child == 0:
        database = sqlite3.connect(tmp_path / "run" / "run.sqlite", isolation_level=None)
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA cache_size = 1")
        database.execute("BEGIN IMMEDIATE")
        database.execute("DROP TRIGGER verdict_delete")
        database.execute("DELETE FROM verdict")
        database.execute("CREATE TABLE x AS SELECT * FROM completion a, completion b LIMIT 3000")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "run" / "run.sqlite-journal").stat().st_size > 0
    assert list(export_jsonl(tmp_path / "run")) == wanted


# without text


def test_no_text_keeps_digests_and_verdicts(tmp_path: Path) -> None:
    whole = run(config(tmp_path / "whole"))
    bare = run(config(tmp_path / "bare", keep_text=False))
    assert [entry.rates for entry in bare.conditions] == [entry.rates for entry in whole.conditions]
    for kept, left in zip(exported(tmp_path / "whole"), exported(tmp_path / "bare"), strict=True):
        assert left["text"] is left["token_ids"] is None
        assert left["text_digest"] == kept["text_digest"]
        assert kept["text_digest"] == hashlib.blake2b(kept["text"].encode(), digest_size=16).hexdigest()
        assert left["verdicts"]["lexicon"] == {**kept["verdicts"]["lexicon"], "reason": ""}
        assert [left[name] for name in ("length", "perplexity")] == [
            kept[name] for name in ("length", "perplexity")
        ]
    content = b"".join(path.read_bytes() for path in (tmp_path / "bare").iterdir())
    assert b"glassy" not in content
    assert b"IDIOT" not in content
    with pytest.raises(ConfigError, match="keeps no completion text"):
        rejudge(tmp_path / "bare", [LexiconJudge(["fool"])])


def test_no_text_stopped_and_resumed_is_judged_whole(tmp_path: Path) -> None:
    class Stopped(StubSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
            for count, completion in enumerate(super().as_completed(prompts, params)):
                if count == 100:
                    raise KeyboardInterrupt
                yield completion

    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "run", keep_text=False), sampler=Stopped())
    rows = exported(tmp_path / "run")
    assert len(rows) == 100
    assert all(row["verdicts"] for row in rows)
    run(config(tmp_path / "run", keep_text=False))
    run(config(tmp_path / "alone", keep_text=False))
    assert tables(tmp_path / "run") == tables(tmp_path / "alone")
