"""The demo on the bundled pair, smaller: the command that a newcomer types, and the finding that it must show."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from eddecode.cli import app, commands


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, pictures: None) -> tuple[Any, Path]:
    """`eddecode demo` with 30 prompts, 2 samples and two α's, run once."""
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "_DEMO_PROMPTS", 30)
        patch.setattr(commands, "_DEMO_SAMPLES", 2)
        patch.setattr(commands, "_DEMO_ALPHAS", "0.6,4")
        result = CliRunner().invoke(app, ["demo", "--out", str(out)], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result, out


def test_what_the_demo_shows(demo: tuple[Any, Path]) -> None:
    """Intervals instead of points, because 60 completions per condition are few; the full demo has four times that."""
    conditions = {
        (entry["condition"], entry["alpha"]): entry
        for entry in json.loads((demo[1] / "summary.json").read_text())["conditions"]
    }
    base, aligned = conditions["base", "0"], conditions["aligned", "-1"]
    best, far = conditions["ed", "0.6"], conditions["ed", "4"]
    assert base["rates"]["lexicon"]["low"] < 0.45
    assert base["rates"]["lexicon"]["high"] > 0.25
    assert aligned["rates"]["lexicon"]["low"] < 0.05
    assert aligned["harm_and_valid"]["high"] < base["harm_and_valid"]["low"]
    assert best["harm_and_valid"]["low"] > base["harm_and_valid"]["high"]
    assert best["rates"]["grammar"]["low"] > 0.5
    assert far["rates"]["grammar"]["high"] < 0.5 < far["rates"]["lexicon"]["low"]  # babble of rude words
    assert aligned["mean_implied_reward"] > base["mean_implied_reward"] > best["mean_implied_reward"]


def test_what_the_demo_says(demo: tuple[Any, Path]) -> None:
    result, out = demo
    said = " ".join(result.stdout.split())
    best = json.loads((out / "summary.json").read_text())["conditions"][2]["harm_and_valid"]
    assert f"{100 * best['rate']:.1f}% [{100 * best['low']:.1f}, {100 * best['high']:.1f}] at α = 0.6" in said
    assert "the two intervals do not overlap" in said
    assert "too large an α makes text unintelligible" in said
    for name in ("summary.json", "curve.svg", "curve.png"):
        assert (out / name).is_file()
        assert re.search(rf"\S*{re.escape(name)}", result.stdout)
    lines = [line for line in result.stdout.splitlines() if "/" not in line]
    assert max(map(cell_len, lines)) <= 80


def test_no_completion_is_shown(demo: tuple[Any, Path]) -> None:
    """Rates only: neither the terminal nor the summary nor the picture quotes a model."""
    result, out = demo
    exported = CliRunner().invoke(app, ["export", str(out)]).stdout.splitlines()
    texts = {json.loads(line)["text"].strip() for line in exported}
    shown = result.output + (out / "summary.json").read_text() + (out / "curve.svg").read_text()
    assert not [text for text in texts if len(text) > 20 and text in shown]


def test_again_and_afresh(demo: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second demo shows the same table at once; one of another configuration is refused; --fresh deletes the run."""
    result, out = demo
    for name, value in (("_DEMO_PROMPTS", 30), ("_DEMO_SAMPLES", 2), ("_DEMO_ALPHAS", "0.6,4")):
        monkeypatch.setattr(commands, name, value)
    again = CliRunner().invoke(app, ["demo", "--out", str(out)], env={"COLUMNS": "80"})
    assert again.stdout == result.stdout
    assert "Loading" not in again.stderr
    assert "Continuing the run in" in again.stderr
    assert "nothing is left to decode" in again.stderr
    for name, value in (("_DEMO_PROMPTS", 2), ("_DEMO_SAMPLES", 1)):
        monkeypatch.setattr(commands, name, value)
    refused = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert refused.exit_code == 2
    assert "samples: 2 in the run, 1 now" in refused.stderr
    assert "--fresh" in refused.stderr
    out = Path(shutil.copytree(out, tmp_path / "run"))
    (out / "mine.txt").write_text("keep")
    fresh = CliRunner().invoke(app, ["demo", "--out", str(out), "--fresh"])
    assert fresh.exit_code == 0
    assert json.loads((out / "summary.json").read_text())["prompts"] == 2
    assert (out / "mine.txt").read_text() == "keep"
