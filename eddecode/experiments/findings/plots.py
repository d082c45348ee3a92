"""The style of the findings' pictures: lines are distinguished by color, dash and marker alike.

The colors are those of Okabe and Ito (jfly.uni-koeln.de/color, 2008), which can be told apart with color blindness;
dash and marker distinguish lines in print. matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRAY = "#4d4d4d"
_GRID = "#e0e0e0"
_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), "-")


@dataclass(frozen=True)
class PlottedRate:
    """A rate with the ends of its interval, from 0 to 1."""

    rate: float
    low: float
    high: float


def style(i: int) -> dict[str, Any]:
    """Color, marker and dash of the i-th line, for `Axes.plot`."""
    k = i % len(_COLORS)
    return {
        "color": _COLORS[k],
        "marker": _MARKERS[k],
        "linestyle": _DASHES[k],
        "markersize": 4.5,
        "linewidth": 1.6,
    }


def axes(count: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9 * count if count > 1 else 7.2, 3.9), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for panel in panels:
        panel.grid(axis="y", color=_GRID, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def percent(panel: Axes) -> None:
    """Make the vertical axis one of percentages."""
    panel.set_ylim(-4, 104)
    panel.set_yticks(range(0, 101, 20), [f"{tick}%" for tick in range(0, 101, 20)])


def line(panel: Axes, xs: Sequence[float], rates: Sequence[PlottedRate], i: int, label: str) -> None:
    """Draw rates as a line with a band for their intervals."""
    look = style(i)
    panel.plot(xs, [100 * r.rate for r in rates], label=label, **look)
    low, high = [100 * r.low for r in rates], [100 * r.high for r in rates]
    panel.fill_between(xs, low, high, color=look["color"], alpha=0.15, linewidth=0)


def alpha_axis(panel: Axes, alphas: Sequence[float]) -> None:
    """Make the horizontal axis one of α: linear up to 1, logarithmic above."""
    if max(alphas) > 2:
        panel.set_xscale("symlog", linthresh=1, linscale=1)
    ticks = [a for a in sorted(set(alphas)) if a in (-1, 0, 0.3, 0.6, 1, 2, 3, 5)]
    panel.set_xticks(ticks, [f"{a:g}".replace("-", "−") for a in ticks])
    panel.minorticks_off()
    panel.set_xlabel("α")


def bars(panel: Axes, names: Sequence[str], rates: Sequence[PlottedRate], i: int = 0) -> None:
    """Draw horizontal bars with intervals, the first one at the top."""
    positions = range(len(names))[::-1]
    error = [[100 * (r.rate - r.low) for r in rates], [100 * (r.high - r.rate) for r in rates]]
    panel.barh(
        positions,
        [100 * r.rate for r in rates],
        xerr=error,
        color=_COLORS[i],
        height=0.62,
        capsize=3,
        ecolor=GRAY,
    )
    panel.set_yticks(list(positions), list(names))
    panel.set_xlim(0, 104)
    panel.set_xticks(range(0, 101, 20), [f"{tick}%" for tick in range(0, 101, 20)])
    panel.grid(axis="x", color=_GRID, linewidth=0.8)
    panel.grid(axis="y", visible=False)


def svg(figure: Figure) -> str:
    """The picture as SVG text; equal data give equal text."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "eddecode", "font.size": 10}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
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
