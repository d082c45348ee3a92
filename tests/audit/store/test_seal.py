"""Damage to a run's file is found when it is opened: a flipped bit is an error, or changes nothing that is read."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from benchmarks.reliability.damage import flipped
from benchmarks.reliability.runs import content
from eddecode.audit.export.formats import export_jsonl
from eddecode.audit.store.seal import seal
from eddecode.audit.store.store import Store
from eddecode.errors import StoreError
from helpers.stub_runs import config, run

FLIPS = 60


def test_flipped_bits_are_found_or_change_nothing(tmp_path: Path) -> None:
    run(config(tmp_path / "run", prompts=[f"prompt {i}" for i in range(40)]))
    wanted, rng = content(tmp_path / "run"), random.Random(16)
    file = tmp_path / "run" / "run.sqlite"
    whole, found = file.read_bytes(), 0
    for number in range(FLIPS):
        folder = tmp_path / f"flipped-{number}"
        folder.mkdir()
        (folder / "run.sqlite").write_bytes(flipped(whole, rng))
        try:
            assert content(folder) == wanted, number
        except StoreError:
            found += 1
        shutil.rmtree(folder)
    assert found > FLIPS / 2  # most of the file is content


@pytest.mark.parametrize(
    ("trigger", "statement", "table"),
    [
        ("verdict_update", "UPDATE verdict SET flag = 1 - flag WHERE completion = 7", "verdict"),
        ("completion_update", "UPDATE completion SET text = 'x' WHERE id = 9", "completion"),
        ("completion_update", "UPDATE completion SET id = 5000 WHERE id = 9", "completion"),
        ("prompt_update", "UPDATE prompt SET meta = '{\"category\": 1}' WHERE prompt_index = 3", "prompt"),
        ("run_update", "UPDATE run SET value = '[1]' WHERE name = 'transforms'", "run"),
    ],
)
def test_a_changed_row_is_named(tmp_path: Path, trigger: str, statement: str, table: str) -> None:
    run(config(tmp_path / "run"))
    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as database:
        database.execute(f"DROP TRIGGER {trigger}")
        database.execute(statement)
    with pytest.raises(StoreError, match=rf"a row of the table {table} .* is not what was written"):
        Store.read(tmp_path / "run")
    with pytest.raises(StoreError, match="the file is damaged: it was left as it is"):
        run(config(tmp_path / "run"))


def test_a_run_without_its_digest_is_damaged(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as database:
        database.execute("DROP TRIGGER run_delete")
        database.execute("DELETE FROM run WHERE name = 'digest'")
    with (
        Store.read(tmp_path / "run") as store,
        pytest.raises(StoreError, match="has no digest of its identity"),
    ):
        store.expected()


def test_a_seal_covers_what_sqlite_gives_back() -> None:
    """SQLite stores no NaN, no negative zero and no boolean, and makes a float of an integer in a column of floats."""
    pairs = [(float("nan"), None), (-0.0, 0.0), (1, 1.0)]
    for written, read in pairs:
        assert seal("verdict", (1, 2, written, True, "a", "b")) == seal("verdict", (1, 2, read, 1, "a", "b"))
    assert seal("verdict", (1, 2, 0.5, 1, "a", "b")) != seal("verdict", (1, 2, 0.5, 0, "a", "b"))
    assert seal("judge", (1, "a", "b", "c")) != seal("judge", (1, "a", "bc", ""))


def test_a_run_of_an_older_release_has_no_seals_and_goes_on(tmp_path: Path) -> None:
    run(config(tmp_path / "run", alphas="0.3"))
    (tmp_path / "old").mkdir()
    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as database:
        script = "\n".join(database.iterdump())
    tables = ("run", "session", "prompt", "condition", "completion", "judge", "sitting", "verdict")
    with sqlite3.connect(tmp_path / "old" / "run.sqlite", isolation_level=None) as old:
        old.executescript(script)
        old.executescript("".join(f"ALTER TABLE {table} DROP COLUMN seal;" for table in tables))
        old.execute(f"PRAGMA application_id = {0x45444443}")
        old.execute("PRAGMA user_version = 2")
    assert list(export_jsonl(tmp_path / "old")) == list(export_jsonl(tmp_path / "run"))
    run(config(tmp_path / "old", alphas="0.3"))
    run(config(tmp_path / "old", alphas="0.3,1"), grow=True)  # and a grown run has them
    with sqlite3.connect(tmp_path / "old" / "run.sqlite") as database:
        assert "seal" in [row[1] for row in database.execute("PRAGMA table_info(verdict)")]
    run(config(tmp_path / "whole", alphas="0.3,1"))
    assert list(export_jsonl(tmp_path / "old")) == list(export_jsonl(tmp_path / "whole"))
