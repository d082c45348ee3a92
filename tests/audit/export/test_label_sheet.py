"""Sheets on which people label completions: blind, drawn at random, and read back."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from eddecode.audit.data.labels import read_labels
from eddecode.audit.export.labeling import completion_ids, label_sheet
from eddecode.audit.run import rejudge
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError, JudgeError
from eddecode.utils.terminal import escape_control_chars
from helpers.stub_runs import config, exported, run


def sheet(folder: Path, *given: object, seed: int = 0) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO("\n".join(label_sheet(folder, *given, seed=seed)), newline="")))  # type: ignore[arg-type]


def filled(rows: list[dict[str, str]], path: Path) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(
            file, list(rows[0]), delimiter=";"
        )  # as spreadsheets of many countries write it
        writer.writeheader()
        writer.writerows({**row, "harmful": "IDIOT" in row["completion"], "rater": "a"} for row in rows)
    return path


def test_a_sheet_is_blind_and_its_labels_are_read_back(tmp_path: Path) -> None:
    first = run(config(tmp_path / "run", mitigations="topk5"))
    rows = sheet(tmp_path / "run", 20)
    assert list(rows[0]) == ["id", "prompt", "completion", "harmful", "rater"]
    assert len(rows) == len({row["id"] for row in rows}) == 20 * len(first.conditions)
    with Store.read(tmp_path / "run") as store:
        ids = completion_ids(store)
    drawn = [ids[row["id"]] for row in rows]
    names = [key[0] for key in drawn]
    assert {name: names.count(name) for name in names} == {c.name: 20 for c in first.conditions}
    assert names != sorted(names, key=names.index)  # conditions are mixed
    texts = {
        (r["name"], r["prompt_index"], r["sample"]): (r["prompt"], escape_control_chars(r["text"]))
        for r in exported(tmp_path / "run")
    }
    for row, (name, _, index, sample) in zip(rows, drawn, strict=True):
        assert (row["prompt"], row["completion"]) == texts[name, index, sample]
        assert not row["harmful"]
    summary = rejudge(tmp_path / "run", labels=filled(rows, tmp_path / "sheet.csv"))
    with Store.read(tmp_path / "run") as store:
        assert {(n, i, s) for n, _, i, s in drawn} == set(store.labels())
    for entry in summary.conditions:
        if corrected := entry.corrected.get("lexicon"):
            assert corrected.rate == pytest.approx(entry.rates["lexicon"].rate)
    assert any(entry.corrected for entry in summary.conditions)


def test_draws(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    small, large, other = (
        {row["id"] for row in sheet(tmp_path / "run", count, seed=seed)}
        for count, seed in ((5, 0), (9, 0), (5, 1))
    )
    assert small < large
    assert small != other
    assert sheet(tmp_path / "run", 5) == sheet(tmp_path / "run", 5)
    assert len(sheet(tmp_path / "run", 10_000, ["base"])) == 36
    with pytest.raises(ConfigError, match=r"the run has no condition 'ed@9'"):
        sheet(tmp_path / "run", 5, ["ed@9"])
    with pytest.raises(ConfigError, match="expected 1 or more"):
        sheet(tmp_path / "run", 0)
    run(config(tmp_path / "digests", keep_text=False))
    with pytest.raises(ConfigError, match="keeps no completion text"):
        sheet(tmp_path / "digests")


def test_labels_of_another_run_and_by_name(tmp_path: Path) -> None:
    run(config(tmp_path / "run", mitigations="topk5"))
    path = tmp_path / "labels.csv"
    path.write_text("id,harmful\nc0123456789abcdef,yes\n")
    with pytest.raises(JudgeError, match=r"line 2: no completion of the run has the id 'c0123456789abcdef'"):
        rejudge(tmp_path / "run", labels=path)
    with pytest.raises(JudgeError, match="no run was given that has them"):
        read_labels(path)
    path.write_text("name,prompt_index,sample,harmful\ned@0.30+topk5,0,0,yes\nbase,0,0,no\n")
    rejudge(tmp_path / "run", labels=path)
    with Store.read(tmp_path / "run") as store:
        assert store.labels() == {("ed@0.3+topk5", 0, 0): True, ("base", 0, 0): False}
