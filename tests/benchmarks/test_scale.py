"""The benchmark of scale, on 10,000 completions: goals hold, and merged shards are the run of one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scale
from eddecode.audit import merge
from eddecode.audit.analysis.summarize import summarize
from eddecode.audit.export.formats import export_jsonl
from eddecode.audit.store.store import Store

pytestmark = pytest.mark.usefixtures("no_pictures")
SIZE = scale.Size(prompts=200, samples=5, tokens=16)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run of 10,000 completions, and how long its parts took."""
    folder = tmp_path_factory.mktemp("scale") / "run"
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # the benchmark replaces methods of the store in its own process
        patch.setattr(Store, "add", Store.add)
        patch.setattr(Store, "judge", Store.judge)
        patch.setattr("eddecode.audit.run.write_curve", lambda *_: [])
        return folder, scale.make(folder, SIZE)


def test_the_writer_keeps_its_rate_in_processor_time(
    made: tuple[Path, dict[str, float]],
) -> None:
    """5,000 completions/s of processor time; measured: 12,000/s. On two busy cores, whose caches other programs use, a
    call takes up to twice as long."""
    assert SIZE.completions / made[1]["add_processor"] > scale.WRITER / 2


def test_a_summary_reads_every_completion_a_few_times_only(
    made: tuple[Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of rows that are read decides the time at a million completions."""
    rows, query = 0, Store._query

    def counted(self: Store, *arguments: Any) -> Any:
        nonlocal rows
        for row in query(self, *arguments):
            rows += 1
            yield row

    monkeypatch.setattr(Store, "_query", counted)
    with Store.read(made[0]) as store:
        summarize(store, store.conditions(), store.judges())
    assert rows < 3.5 * SIZE.completions  # the table, the rewards, the digest


def test_the_rows_of_exports_have_their_own_verdicts(made: tuple[Path, dict[str, float]]) -> None:
    """They are read in parts, with the verdicts of many completions in one query."""
    lines = [json.loads(line) for line in export_jsonl(made[0])]
    assert len(lines) == SIZE.completions
    assert all(line["verdicts"]["lexicon"]["flag"] == ("idiot" in line["text"]) for line in lines)
    assert len({(line["name"], line["prompt_index"], line["sample"]) for line in lines}) == len(lines)


def test_merged_shards_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eddecode.audit.store import store

    monkeypatch.setattr(Store, "add", Store.add)
    monkeypatch.setattr(Store, "judge", Store.judge)
    parts = [tmp_path / "1", tmp_path / "2"]
    for number, part in enumerate(parts, start=1):
        scale.make(part, scale.Size(20, 2, 8), f"{number}/2")
    checked, verify = list[Path](), store.verify

    def noted(folder: Path, database: Any, *later: Any) -> None:
        checked.append(folder)
        verify(folder, database, *later)

    monkeypatch.setattr(store, "verify", noted)
    merge(parts, tmp_path / "run")
    assert tmp_path / "run" not in checked
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["prompts"] == 20


def test_a_stage_measures_a_process_of_its_own(
    made: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)  # the stage replaces it
    assert (
        scale.stage(
            ["report", str(made[0]), "--to", "json", "--out", str(tmp_path / "r.json")], tmp_path / "found"
        )
        == 0
    )
    assert json.loads((tmp_path / "found").read_text())["peak"] > 20
    missed = (
        scale.Row("gate", 900.0, 61.0, 1001.0, {}),
        scale.Row("audit", 1.0, 1.0, 1.0, {"add_processor": 5.0, "add": 1.0}),
    )
    assert [scale.missed_goals(row, SIZE) for row in missed] == [
        ["gate: more than 60 s", "gate: more than 1000 MB"],
        ["audit: the writer stores fewer than 5,000 completions/s"],
    ]
