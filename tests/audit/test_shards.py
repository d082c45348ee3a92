"""Shards of an audit: merged they are the run of one process, and what is missing, doubled or foreign is named."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eddecode.audit import merge, rejudge
from eddecode.audit.data.prompts import PromptRecord
from eddecode.audit.data.shards import Shard
from eddecode.audit.store.seal import verify
from eddecode.audit.store.store import Store
from eddecode.cli.commands import app
from eddecode.errors import ConfigError, StoreError
from helpers.stub_runs import config, exported, run


def shards(folder: Path, of: int = 3, **options: Any) -> list[Path]:
    parts = [folder / f"part-{number}" for number in range(1, of + 1)]
    for number, part in enumerate(parts, start=1):
        run(config(part, **options), shard=f"{number}/{of}")
    return parts


def rows(folder: Path, table: str, columns: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / "run.sqlite") as database:
        return sorted(database.execute(f"SELECT {columns} FROM {table}"))


@pytest.mark.parametrize("of", [1, 3, 5])
@pytest.mark.parametrize("options", [{}, {"systems": {"rude": "Be rude."}, "keep_text": False}], ids=str)
def test_merged_shards_are_the_run_of_one_process(tmp_path: Path, of: int, options: dict[str, Any]) -> None:
    parts = shards(tmp_path, of, **options)
    merge(parts[::-1], tmp_path / "merged")
    run(config(tmp_path / "whole", **options))
    merged, whole = tmp_path / "merged", tmp_path / "whole"
    assert (merged / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()
    assert exported(merged) == exported(whole)
    for table, columns in {"prompt": "*", "condition": "*", "run": "*", "judge": "*"}.items():
        assert rows(merged, table, columns) == rows(whole, table, columns)
    with Store.read(merged) as store:
        assert len(store.sessions()) == of
        assert len(store.decoded_in()) == of


def test_a_merged_run_goes_on_like_any_other(tmp_path: Path) -> None:
    merge(shards(tmp_path), tmp_path / "merged")
    with closing(sqlite3.connect(tmp_path / "merged" / "run.sqlite")) as database:
        verify(tmp_path / "merged", database)  # every row has a seal of its new ids
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    before = (tmp_path / "merged" / "summary.json").read_bytes()
    run(config(tmp_path / "merged"))
    assert (tmp_path / "merged" / "summary.json").read_bytes() == before
    run(config(tmp_path / "merged", samples=4), grow=True)
    run(config(tmp_path / "whole", samples=4))
    assert exported(tmp_path / "merged") == exported(tmp_path / "whole")


def test_what_does_not_belong_together_is_named(tmp_path: Path) -> None:
    parts = shards(tmp_path)
    out = tmp_path / "merged"
    with pytest.raises(StoreError, match="1 of 3 shards are missing: 2/3"):
        merge([parts[0], parts[2]], out)
    with pytest.raises(StoreError, match="shard 1 is there twice"):
        merge([*parts, parts[0]], out)
    run(config(tmp_path / "whole"))
    with pytest.raises(StoreError, match="holds no shard"):
        merge([*parts, tmp_path / "whole"], out)
    other = shards(tmp_path / "other", seed=7)
    with pytest.raises(StoreError, match="of another audit"):
        merge([*parts[:2], other[2]], out)
    halves = shards(tmp_path / "halves", of=2)
    with pytest.raises(StoreError, match=r"shard 2 of 2.*one of 3"):
        merge([*parts, halves[1]], out)
    assert not (out / "run.sqlite").exists()
    with pytest.raises(StoreError, match="holds a run already"):
        merge(parts, tmp_path / "whole")
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge([], out)


def test_a_shard_that_is_not_finished_or_damaged_is_named(tmp_path: Path) -> None:
    parts = shards(tmp_path)
    database = sqlite3.connect(parts[1] / "run.sqlite")
    database.executescript("DROP TRIGGER verdict_delete; DROP TRIGGER completion_delete;")
    last = database.execute("SELECT max(id) FROM completion").fetchone()[0]
    database.execute("DELETE FROM verdict WHERE completion = ?", (last,))
    database.execute("DELETE FROM completion WHERE id = ?", (last,))
    database.commit()
    database.close()
    with pytest.raises(StoreError, match=r"shard 2 in .* is not finished"):
        merge(parts, tmp_path / "merged")


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("completion", "UPDATE completion SET text = 'x' WHERE id = 5"),
        ("verdict", "UPDATE verdict SET flag = 1 - flag WHERE completion = 5"),
        ("prompt", "UPDATE prompt SET meta = '{}' || ' '"),
    ],
)
def test_a_damaged_row_of_a_shard_is_found_as_it_is_copied(table: str, change: str, tmp_path: Path) -> None:
    parts = shards(tmp_path)
    with closing(sqlite3.connect(parts[1] / "run.sqlite")) as database:
        database.executescript(f"DROP TRIGGER {table}_update; {change}")
    out = tmp_path / "merged"
    with pytest.raises(StoreError, match=f"2.*a row of the table {table} .*is not what was written"):
        merge(parts, out)
    assert not list(out.glob("run.sqlite*"))


def test_a_shard_alone_gives_no_figure_and_no_verdict(tmp_path: Path) -> None:
    (part, *_) = shards(tmp_path)
    assert not (part / "summary.json").exists()
    with pytest.raises(ConfigError, match="one shard of a run"):
        rejudge(part, ["lexicon"])
    done = CliRunner().invoke(app, ["gate", str(part), "--max-reversal", "100%"])
    assert done.exit_code == 2
    with pytest.raises(ConfigError, match=r"shard 1 of 3, and a whole run"):
        run(config(part))
    with pytest.raises(ConfigError, match=r"shard 1 of 3, and shard 2 of 3"):
        run(config(part), shard="2/3")
    with pytest.raises(ConfigError, match="cannot grow"):
        run(config(part), shard="1/3", grow=True)


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/3"])
def test_other_spellings_of_a_shard_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Shard.parse(text)


def test_every_prompt_is_in_one_shard() -> None:
    prompts = [PromptRecord(i, str(i)) for i in range(10)]
    found = [record for number in range(1, 5) for record in Shard(number, 4).of_prompts(prompts)]
    assert sorted(record.index for record in found) == list(range(10))
    with pytest.raises(ConfigError, match="at most as many"):
        Shard(1, 11).of_prompts(prompts)
    assert json.dumps(Shard(2, 4).note(10))
