"""The plots of the findings: lines and bars in the style of `eddecode.utils.plotting`, as every picture here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eddecode.utils import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRAY = plotting.GRAY
percent, alpha_axis, log_axis = plotting.percent_axis, plotting.alpha_axis, plotting.log_axis


@dataclass(frozen=True)
class PlottedRate:
    """A rate with the ends of its interval, from 0 to 1."""

    rate: float
    low: float
    high: float


def style(i: int) -> dict[str, Any]:
    """Color, marker and dash of the i-th line, for `Axes.plot`."""
    return plotting.series_style(i) | {"markersize": 4.5, "linewidth": 1.6}


def axes(count: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels side by side."""
    return plotting.new_figure(353 * count if count > 1 else 518, 281, columns=count)


def legend(figure: Figure, columns: int) -> None:
    """A legend below the panels, each label once."""
    plotting.figure_legend(figure, columns=columns)


def line(panel: Axes, xs: Sequence[float], rates: Sequence[PlottedRate], i: int, label: str) -> None:
    """Draw rates as a line with a band for their intervals."""
    plotting.draw_line(panel, xs, [(100 * r.rate, 100 * r.low, 100 * r.high) for r in rates], i, label)


def bars(panel: Axes, names: Sequence[str], rates: Sequence[PlottedRate], i: int = 0) -> None:
    """Draw horizontal bars with intervals, the first one at the top."""
    positions = range(len(names))[::-1]
    error = [[100 * (r.rate - r.low) for r in rates], [100 * (r.high - r.rate) for r in rates]]
    panel.barh(
        positions,
        [100 * r.rate for r in rates],
        xerr=error,
        color=plotting.SERIES_COLORS[i],
        height=0.62,
        capsize=3,
        ecolor=GRAY,
    )
    panel.set_yticks(list(positions), list(names))
    panel.set_xlim(0, 104)
    plotting.number_axis(panel.xaxis, lambda value: plotting.format_tick(value, "%"))
    panel.grid(axis="x")
    panel.grid(axis="y", visible=False)


def svg(draw: Callable[[], Figure]) -> str:
    """The picture that `draw` makes, as SVG text; equal data give equal text."""
    with plotting.plot_style():
        text = plotting.svg_text(draw())
    return text[text.index("<svg") :]


def marked_bars(
    names: Sequence[str], rates: Sequence[Sequence[float]], marks: Sequence[float], label: str
) -> Figure:
    """Bars with intervals and a black mark on each; a rate is (value, low, high), as in `PlottedRate`."""
    figure, (panel,) = axes()
    bars(panel, names, [PlottedRate(*rate) for rate in rates])
    panel.plot([100 * mark for mark in marks], range(len(marks))[::-1], "|", color="black", markersize=16)
    panel.set_xlabel(label)
    return figure
