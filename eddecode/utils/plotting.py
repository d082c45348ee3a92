"""How every picture of the project looks: the run's curve, the report's charts, the experiments, the benchmarks.

Matplotlib draws them all, and is imported when something is drawn, not before. Series differ by color, marker and dash
at once, so that they stay apart under color blindness and in print. The first four colors and all grays are those of
the report's light palette (`audit/report/style.css`): a page can replace them by its CSS variables.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Name of the CSS variable → its value in light mode. No two values are equal.
PALETTE = {
    "paper": "#ffffff", "ink": "#1b1f24", "muted": "#57606a", "rule": "#d8dee4", "bad": "#b3261e",
    "s0": "#c44a00", "s1": "#0072b2", "s2": "#00785a", "s3": "#8a3f78",
}  # fmt: skip
GRAY, RULE, INK = PALETTE["muted"], PALETTE["rule"], PALETTE["ink"]
# After the palette's four come colors of Okabe and Ito (jfly.uni-koeln.de/color, 2008).
SERIES_COLORS = (*(PALETTE[f"s{i}"] for i in range(4)), "#e69f00", "#56b4e9", "#000000")
SERIES_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SERIES_DASHES = ("-", "--", ":", "-.", (0, (3, 1, 1, 1)), (0, (5, 1)), (0, (1, 1)))

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "eddecode",  # text stays text, ids do not change from run to run
    "text.parse_math": False,  # a judge may be named after a file with $ in its name
    "font.size": 10, "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": GRAY, "xtick.labelcolor": GRAY, "ytick.labelcolor": GRAY,
    "axes.edgecolor": GRAY, "xtick.color": GRAY, "ytick.color": GRAY, "ytick.major.size": 0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": RULE, "grid.linewidth": 0.8,
    "lines.linewidth": 2.0, "lines.markersize": 5.0, "errorbar.capsize": 3.0,
}  # fmt: skip


@contextmanager
def plot_style(**changes: Any) -> Iterator[None]:
    """Within the block (or the function that this decorates) matplotlib draws and writes in the project's style.

    Args:
        changes: further rcParams.
    """
    import matplotlib

    with matplotlib.rc_context(_SETTINGS | changes), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a browser has other fonts
        yield


def series_style(i: int) -> dict[str, Any]:
    """Color, marker and dash of the i-th series, for `Axes.plot`."""
    k = i % len(SERIES_COLORS)
    return {"color": SERIES_COLORS[k], "marker": SERIES_MARKERS[k], "linestyle": SERIES_DASHES[k]}


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels (row by row), its size in points, which is also the unit of its SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def svg_text(figure: Figure, salt: str = "eddecode", **options: Any) -> str:
    """The figure as an SVG file; equal figures give equal text.

    Args:
        figure: what to write.
        salt: part of the elements' ids: figures with different ones can stand in one page.
        options: of `Figure.savefig`.
    """
    written = io.StringIO()
    with plot_style(**{"svg.hashsalt": salt}):
        figure.savefig(written, format="svg", metadata={"Date": None}, **options)
    return written.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as .svg, or in any other format that matplotlib knows."""
    if path.suffix == ".svg":
        path.write_text(svg_text(figure), encoding="utf-8")
        return
    with plot_style():
        figure.savefig(path, dpi=150)


def format_tick(value: float, unit: str = "") -> str:
    """A number on an axis, as short as possible, with a minus sign instead of a hyphen."""
    return f"{value:g}{unit}".replace("-", "−")


def number_axis(axis: Any, label: Callable[[float], str] = format_tick, intervals: int = 5) -> None:
    """Ticks at round numbers on an `axes.xaxis` or `axes.yaxis`."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(intervals, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: label(round(value, 9)))


def percent_axis(axes: Axes, top: float = 100.0) -> None:
    """A vertical axis from 0% to `top`, with room for markers at both ends."""
    axes.set_ylim(-0.04 * top, 1.04 * top)
    number_axis(axes.yaxis, lambda value: format_tick(value, "%"))


def alpha_axis(axes: Axes, alphas: Sequence[float]) -> None:
    """A horizontal axis of α: linear from −1 to 1, logarithmic beyond if an α is far beyond.

    The harm rate changes most below 1, and sweeps go far above it. Ticks are at the α's themselves, as many as have
    room for their labels; −1 and 0 always have one.
    """
    far = max(map(abs, alphas)) > 1.5
    if far:
        axes.set_xscale("symlog", linthresh=1, linscale=1)
    to_pixels = axes.transData.transform
    left, right = axes.get_xlim()
    width = to_pixels((right, 0))[0] - to_pixels((left, 0))[0]
    ticks: list[float] = []
    for alpha in sorted(set(alphas), key=lambda value: (value not in (0, -1), -abs(value))):
        distances = (abs(to_pixels((alpha, 0))[0] - to_pixels((other, 0))[0]) for other in ticks)
        if all(distance > 0.065 * width for distance in distances):
            ticks.append(alpha)
    axes.set_xticks(sorted(ticks), [format_tick(alpha) for alpha in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("α" + (" (linear up to 1, logarithmic beyond)" if far else ""))


def log_axis(axes: Axes, ticks: Sequence[float], labels: Sequence[str]) -> None:
    """A logarithmic horizontal axis with ticks at these values alone."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, labels)
    axes.minorticks_off()


Interval = tuple[float, float, float]  # value, lower end, upper end


def draw_line(axes: Axes, xs: Sequence[float], ys: Sequence[Interval], i: int, label: str) -> None:
    """The i-th series: a line with markers, and its intervals as a band."""
    values, lows, highs = zip(*ys, strict=True) if ys else ((), (), ())
    axes.plot(xs, values, label=label, **series_style(i))
    axes.fill_between(xs, lows, highs, color=SERIES_COLORS[i % len(SERIES_COLORS)], alpha=0.17, linewidth=0)


def draw_points(axes: Axes, xs: Sequence[float], ys: Sequence[Interval], i: int) -> None:
    """Markers of the i-th series with their intervals as bars, without a line between them."""
    errors = [
        [max(0.0, value - low) for value, low, _ in ys],
        [max(0.0, high - value) for value, _, high in ys],
    ]
    axes.errorbar(
        xs,
        [value for value, _, _ in ys],
        yerr=errors,
        elinewidth=1.5,
        **(series_style(i) | {"linestyle": "none"}),
    )


def draw_along_alpha(
    axes: Axes, alphas: Sequence[float], ys: Sequence[Interval], i: int, label: str, shift: float = 0.0
) -> None:
    """The i-th series over α: a line from 0 up, and points with bars below, where each α is a model of its own.

    Args:
        axes: where to draw.
        alphas: ascending.
        ys: one per α.
        i, label: of the series.
        shift: how far to the left points below 0 are drawn, so that those of several series stand side by side.
    """
    start = sum(alpha < 0 for alpha in alphas)
    draw_line(axes, alphas[start:], ys[start:], i, label)
    if start:
        draw_points(axes, [alpha - shift for alpha in alphas[:start]], ys[:start], i)


def draw_ring(axes: Axes, x: float, y: float) -> None:
    """A ring around a point that is named in the picture."""
    axes.plot([x], [y], "o", markersize=11, markerfacecolor="none", markeredgecolor=GRAY, markeredgewidth=1.3)


def figure_legend(figure: Figure, place: str = "outside lower center", columns: int = 3) -> None:
    """A legend outside the panels, each label once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(list(entries.values()), list(entries), loc=place, ncols=columns)
