"""The commands `label-sheet` and `judge --labels`: from a run to a sheet, and from its labels to what they changed."""

from __future__ import annotations

import csv
from pathlib import Path

from cli.test_commands import invoke
from helpers.stub_runs import config, run


def test_a_sheet_and_what_its_labels_changed(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    path = tmp_path / "sheet.csv"
    result = invoke("label-sheet", tmp_path / "run", "--out", path, "--per-condition", 30)
    assert result.exit_code == 0, result.output
    assert "150 completions are in" in result.output
    assert f"eddecode judge {tmp_path / 'run'} --labels {path}" in result.output.replace("\n", " ")
    again = invoke("label-sheet", tmp_path / "run", "--out", path)
    assert again.exit_code == 2
    assert "is there already, and may hold labels" in " ".join(again.output.split())
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:  # the rater finds rudeness that the word list has missed
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {**row, "harmful": "IDIOT" in row["completion"] or i % 9 == 0} for i, row in enumerate(rows)
        )
    judged = invoke("judge", tmp_path / "run", "--labels", path)
    assert judged.exit_code == 0, judged.output
    assert "What the labels changed" in judged.stdout
    assert "corrected by" in judged.stdout
    assert "reversal, points" in judged.stdout
    assert max(map(len, judged.stdout.splitlines()[:-5])) <= 80


def test_what_another_judge_changed(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    words = tmp_path / "words.txt"
    words.write_text("glassy\n")
    other = invoke("judge", tmp_path / "run", "--judge", f"lexicon:{words},name=lexicon")
    assert other.exit_code == 0, other.output
    assert "What the judge changed" in other.stdout
    same = invoke("judge", tmp_path / "run", "--judge", f"lexicon:{words},name=lexicon")
    assert same.exit_code == 0, same.output
    assert "What the judge changed" not in same.stdout
