"""Runs side by side: in the order of their alignment's strength, with what makes them incomparable said aloud."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report import comparison as compare
from eddecode.cli.commands import app
from eddecode.errors import ConfigError
from eddecode.utils import plotting
from helpers.report_runs import NASTY, estimate, summary, write_run

# name → (strength in nats, reversal); not in the order of strength
GIVEN = {"strong": (8.5, 0.55), "weak": (1.0, 0.1), "middle": (3.0, 0.38)}


def folders(tmp_path: Path, given: dict[str, tuple[float, float]] = GIVEN) -> list[Path]:
    return [
        write_run(tmp_path / name, summary(strength=nats, reversal=estimate(reversal), digest=name))
        for name, (nats, reversal) in given.items()
    ]


@pytest.fixture
def runs(tmp_path: Path) -> list[compare.Compared]:
    return compare.compared([Summary.read(folder) for folder in folders(tmp_path)])


def test_in_order_of_strength(runs: list[compare.Compared]) -> None:
    assert [run.name for run in compare.by_strength(runs)] == ["weak", "middle", "strong"]
    assert [row.cells[0] for row in compare.table(runs).rows] == ["weak", "middle", "strong"]
    assert [row.cells[6] for row in compare.table(runs).rows] == [
        "+10.0 [4.0, 16.0]",
        "+38.0 [32.0, 44.0]",
        "+55.0 [49.0, 61.0]",
    ]


@pytest.mark.parametrize(
    ("reversals", "said"),
    [((0.1, 0.2, 0.3), "the larger the reversal"), ((0.3, 0.2, 0.1), "the smaller the reversal"),
     ((0.1, 0.3, 0.2), "does not simply follow")],
)  # fmt: skip
def test_the_reading(tmp_path: Path, reversals: tuple[float, ...], said: str) -> None:
    given = {f"run{i}": (float(i), reversal) for i, reversal in enumerate(reversals)}
    found = compare.compared([Summary.read(folder) for folder in folders(tmp_path, given)])
    assert said in compare.reading(found)
    most = max(given, key=lambda name: given[name][1])
    assert compare.reading(found).startswith(f"{most} has the largest reversal: +30.0")


def test_the_chart_puts_runs_where_they_belong(runs: list[compare.Compared]) -> None:
    chart = compare.chart(runs)
    assert chart is not None
    with plotting.plot_style():
        axes = chart.draw().axes[0]
    places = {note.get_text(): tuple(note.xy) for note in axes.texts}  # type: ignore[attr-defined]
    for number, name in (("1", "weak"), ("2", "middle"), ("3", "strong")):
        nats, reversal = GIVEN[name]
        assert places[number] == pytest.approx((nats, 100 * reversal))
    assert "strong: +55.0 [49.0, 61.0] points at 8.5 nats" in chart.description


@pytest.mark.parametrize("strengths", [(-8.5, -1.0), (-2.0, 3.0), (0.0, 0.0)])
def test_strengths_below_zero_are_in_the_chart(tmp_path: Path, strengths: tuple[float, float]) -> None:
    """An implied reward of few completions can be negative by chance."""
    given = {f"run{i}": (nats, 0.1 * i) for i, nats in enumerate(strengths)}
    found = compare.compared([Summary.read(folder) for folder in folders(tmp_path, given)])
    chart = compare.chart(found)
    assert chart is not None
    with plotting.plot_style():
        low, high = chart.draw().axes[0].get_xlim()
    assert low <= min(0.0, *strengths) - 0.3 * (min(strengths) < 0)
    assert high > max(0.0, *strengths)
    assert compare.to_html(found).count("<svg") == 1 + 2


def test_what_does_not_compare_is_said_before_the_figures(tmp_path: Path) -> None:
    one, two = summary(), summary(prompts=50)
    given = [write_run(tmp_path / name, data) for name, data in (("one", one), ("two", two))]
    found = compare.compared([Summary.read(folder) for folder in given])
    for text, figure in ((compare.to_html(found), "Side by side"), (compare.to_markdown(found), "| run |")):
        assert 0 < text.index("The runs differ in prompts") < text.index(figure)
    result = CliRunner().invoke(app, ["compare", *map(str, given)], env={"COLUMNS": "80"})
    assert result.stderr.startswith("WARNING: The runs differ in prompts")
    assert max(map(len, result.stdout.splitlines())) <= 80


def of(data: dict[str, Any]) -> Summary:
    return Summary.from_json(json.dumps(data))


def test_strength_falls_back_to_the_implied_reward(tmp_path: Path) -> None:
    """KL(aligned ‖ base) is the mean implied reward of the aligned model's own completions."""
    data = summary(strength=4.0)
    assert compare.strength(of(data)).value == 4.0  # type: ignore[union-attr]
    data["judge_free"]["kl"]["aligned_base"]["value"] = None
    assert compare.strength(of(data)).value == 3.0  # type: ignore[union-attr]
    del data["judge_free"]
    assert compare.strength(of(data)).value == 3.0  # type: ignore[union-attr]
    data["conditions"][0]["mean_implied_reward"] = None
    assert compare.strength(of(data)) is None


def test_what_does_not_compare_is_said(tmp_path: Path) -> None:
    one, two = summary(), summary(prompts=50, judges=("guard",), bound=0.2)
    two["identity"]["temperature"] = 0.7
    found = compare.compared(
        [Summary.read(write_run(tmp_path / n, d)) for n, d in (("one", one), ("two", two))]
    )
    said = compare.differences(found)
    assert said == [
        "The runs differ in prompts (one: 200 prompts, digest 2; two: 50 prompts, digest 2).",
        "The runs differ in temperature (one: 1.0; two: 0.7).",
        "The runs differ in the judge of harm (one: lexicon, 0; two: guard, 0).",
        "The runs differ in the bound on lost utility (one: 10.0%; two: 20.0%).",
        "Their figures are not comparable as they stand.",
    ]
    assert compare.differences([found[0], found[0]]) == []


def test_which_runs(tmp_path: Path) -> None:
    one = Summary.read(write_run(tmp_path / "a" / "run"))
    with pytest.raises(ConfigError, match="1 run to compare; expected two or more"):
        compare.compared([one])
    with pytest.raises(ConfigError, match="is named twice; expected each once"):
        compare.compared([one, Summary.read(tmp_path / "a" / ".." / "a" / "run")])
    two = Summary.read(write_run(tmp_path / "b" / "run"))
    assert [run.name for run in compare.compared([one, two])] == ["a/run", "b/run"]


def test_runs_without_figures(tmp_path: Path) -> None:
    bare: dict[str, Any] = {"schema": "eddecode.summary/3"}
    found = compare.compared([Summary.read(write_run(tmp_path / name, bare)) for name in ("one", "two")])
    assert compare.reading(found) == "None of the runs has a figure for reversal."
    assert compare.chart(found) is None
    assert "<table>" in compare.to_html(found)
    assert json.loads(compare.to_json(found))["runs"][0]["strength"] is None


def test_the_command(tmp_path: Path) -> None:
    given = [*folders(tmp_path), write_run(tmp_path / NASTY.replace("/", "_"))]

    def invoke(*arguments: Any) -> Any:
        return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "120"})

    shown = invoke(*given)
    assert shown.exit_code == 0, shown.output
    assert "\x1b" not in shown.output
    assert "strong has the largest reversal" in shown.stdout
    assert len(json.loads(invoke(*given, "--to", "json").stdout)["runs"]) == 4
    assert "| weak | 1.0 [0.7, 1.3] |" in invoke(*given, "--to", "markdown").stdout
    page = tmp_path / "page.html"
    assert invoke(*given, "--to", "html", "--out", page).exit_code == 0
    text = page.read_text()
    assert "<script" not in text
    assert text.count("<svg") == 1 + 4
    for arguments, message in (
        ((given[0],), "1 run to compare"),
        ((*given, "--to", "pdf"), "expected table, html, markdown or json"),
        ((*given, "--out", page), "--out needs --to html, markdown or json"),
    ):
        refused = invoke(*arguments)
        assert refused.exit_code == 2
        assert message in " ".join(refused.stderr.split())
