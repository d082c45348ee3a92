"""The report's charts: figures and names stand where they belong, limits too, in the colors and fonts of the page."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from eddecode.audit.analysis.summary import Summary
from eddecode.audit.gate import Policy, decide
from eddecode.audit.report import html
from eddecode.audit.report.charts import depth_chart, harm_chart, inline_svg, utility_chart
from eddecode.audit.report.key_figures import limit_lines
from eddecode.utils import plotting
from helpers import report_runs as runs
from helpers.report_runs import write_run


def test_the_limits_of_the_gate_are_in_the_chart(tmp_path: Path) -> None:
    run = Summary.read(write_run(tmp_path / "run"))
    policy = Policy(
        max_reversal=0.05, max_harm_rate=0.3, max_worst_attack=0.31, max_uplift=0.1, max_any_of_k=0.2
    )
    limits = limit_lines(run, decide(run, policy, ()))
    assert limits == [
        ("limit: 5 points over base", pytest.approx(0.45)),
        ("limit: 30%", 0.3),
        ("limit: 10 points over aligned", pytest.approx(0.1)),
        ("limit: 31%, any attack", 0.31),
    ]
    chart = harm_chart(run, limits)
    assert chart is not None
    with plotting.plot_style():
        axes = chart.draw().axes[0]
        axes.figure.draw_without_rendering()
        named = {text.get_text(): text for text in axes.texts if text.get_text().startswith("limit")}
        places = sorted(text.get_window_extent().extents[1::2].tolist() for text in named.values())
    heights = [text.xy[1] for text in named.values()]  # type: ignore[attr-defined]
    assert heights == pytest.approx([10, 30, 31, 45])
    for lower, upper in pairwise(places):
        assert lower[1] <= upper[0]  # no name is on another
    assert "Limit: 30%, at 30.0%" in chart.description
    assert limit_lines(run, None) == []


def test_the_chart_puts_figures_where_they_belong(tmp_path: Path) -> None:
    """The line, the band and the names in the drawing are the summary's; so are the line's pixels in the page."""
    run = Summary.read(write_run(tmp_path / "run"))
    chart = harm_chart(run)
    assert chart is not None
    with plotting.plot_style():
        axes = chart.draw().axes[0]
    line = axes.get_lines()[0]
    alphas = [0.0, 0.3, 1.0, 4.0]
    assert np.asarray(line.get_xdata()).tolist() == alphas
    assert line.get_ydata() == pytest.approx([100 * runs.harm_at(a) for a in alphas], abs=0.2)
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert {f"{a:g}" for a in alphas} <= set(ticks)
    names = [text.get_text() for text in axes.texts]
    for name in ("base\n40.0%", "aligned\n0.0%", "headline α = 1"):
        assert name in names
    path = re.search(r'd="M ([^"]*)"[^>]*fill="none" stroke="var\(--s0\)"', str(inline_svg(chart)))
    assert path is not None
    heights = np.array([float(pair.split()[1]) for pair in path[1].split("L ")])
    rates = np.asarray(line.get_ydata())
    assert np.polyfit(rates, heights, 1)[0] < 0  # SVG counts downwards
    assert np.corrcoef(rates, heights)[0, 1] == pytest.approx(-1, abs=1e-9)


def test_a_chart_takes_its_colors_and_fonts_from_the_page(tmp_path: Path) -> None:
    run = Summary.read(write_run(tmp_path / "run"))
    css = (Path(html.__file__).parent / "style.css").read_text()
    light = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", css[: css.index("@media")]))
    assert {name: light[name] for name in plotting.PALETTE} == plotting.PALETTE
    for make in (harm_chart, utility_chart, depth_chart):
        chart = make(run)
        assert chart is not None
        drawn = str(inline_svg(chart))
        assert not re.search('#[0-9a-f]{6}[;"]|font-family|<style|<metadata|<!--|NaN', drawn)
        assert drawn == str(inline_svg(chart))
        assert f"<title>{chart.title}</title>" in drawn
