"""How the findings' pictures look: one style, told apart by colour, dash and marker alike.

Colours are those of Okabe and Ito (jfly.uni-koeln.de/color, 2008), which stay apart under colour blindness; each line
also has a dash and a marker of its own, so that they stay apart in print.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#4d4d4d"
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), "-")


@dataclass(frozen=True)
class Band:
    """A rate with the ends of its interval, from 0 to 1, read back from an outcome's data."""

    rate: float
    low: float
    high: float


def style(i: int) -> dict[str, Any]:
    """The i-th line's colour, marker and dash, for `Axes.plot`."""
    k = i % len(_COLOURS)
    return {
        "color": _COLOURS[k], "marker": _MARKERS[k], "linestyle": _DASHES[k], "markersize": 4.5, "linewidth": 1.6,
    }  # fmt: skip


def axes(count: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9 * count if count > 1 else 7.2, 3.9), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for panel in panels:
        panel.grid(axis="y", color="#e0e0e0", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def percent(panel: Axes) -> None:
    """A vertical axis of percentages."""
    panel.set_ylim(-4, 104)
    panel.set_yticks(range(0, 101, 20), [f"{tick}%" for tick in range(0, 101, 20)])


def line(panel: Axes, xs: Sequence[float], rates: Sequence[Band], i: int, label: str) -> None:
    """Rates with their bands."""
    look = style(i)
    panel.plot(xs, [100 * r.rate for r in rates], label=label, **look)
    panel.fill_between(
        xs,
        [100 * r.low for r in rates],
        [100 * r.high for r in rates],
        color=look["color"],
        alpha=0.15,
        linewidth=0,
    )


def alpha_axis(panel: Axes, alphas: Sequence[float]) -> None:
    """α as it is up to 1, by its logarithm beyond."""
    if max(alphas) > 2:
        panel.set_xscale("symlog", linthresh=1, linscale=1)
    ticks = [a for a in sorted(set(alphas)) if a in (-1, 0, 0.3, 0.6, 1, 2, 3, 5)]
    panel.set_xticks(ticks, [f"{a:g}".replace("-", "−") for a in ticks])
    panel.minorticks_off()
    panel.set_xlabel("α")


def bars(panel: Axes, names: Sequence[str], rates: Sequence[Band], i: int = 0) -> None:
    """Horizontal bars with intervals, the first on top."""
    places = range(len(names))[::-1]
    error = [[100 * (r.rate - r.low) for r in rates], [100 * (r.high - r.rate) for r in rates]]
    panel.barh(
        places,
        [100 * r.rate for r in rates],
        xerr=error,
        color=_COLOURS[i],
        height=0.62,
        capsize=3,
        ecolor=GREY,
    )
    panel.set_yticks(list(places), list(names))
    panel.set_xlim(0, 104)
    panel.set_xticks(range(0, 101, 20), [f"{tick}%" for tick in range(0, 101, 20)])
    panel.grid(axis="x", color="#e0e0e0", linewidth=0.8)
    panel.grid(axis="y", visible=False)


def svg(figure: Figure) -> str:
    """The picture as SVG text; equal data give equal text."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "eddecode", "font.size": 10}):
        kept = io.StringIO()
        figure.savefig(kept, format="svg", metadata={"Date": None})
    text = kept.getvalue()
    return text[text.index("<svg") :]


def marked_bars(
    names: Sequence[str], rates: Sequence[Sequence[float]], marks: Sequence[float], label: str
) -> Figure:
    """A bar with its interval for each name, and a black mark where it stands without ED; `rates` as for `Band`."""
    figure, (panel,) = axes()
    bars(panel, names, [Band(*rate) for rate in rates])
    panel.plot([100 * mark for mark in marks], range(len(marks))[::-1], "|", color="black", markersize=16)
    panel.set_xlabel(label)
    return figure
