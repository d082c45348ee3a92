"""The picture of a run: harm rate against α, with its band, the base and the aligned model marked.

Utility is drawn beside it (validity where it was judged, else the share of completions that are intact), because a
harm rate alone cannot tell reversal from incoherent text. Conditions with something changed about them (mitigations,
transforms) are for tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eddecode.audit.analysis.summary import Summary
from eddecode.audit.stats.estimates import Rate
from eddecode.utils import plotting
from eddecode.utils.files import atomic_path
from eddecode.utils.plotting import GRAY, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILES = ("curve.svg", "curve.png")


def _series(summary: Summary) -> list[tuple[str, list[Rate]]]:
    """The lines of the picture: a label and one rate per condition."""
    entries = summary.line
    harm, valid = summary.harm_judge, summary.validity_judge
    lines = [(f"harm ({harm})", [e.rates[harm] for e in entries])]
    if valid is None:
        return [*lines, ("intact", [e.utility.rate for e in entries if e.utility is not None])]
    both = [e.harm_and_valid for e in entries if e.harm_and_valid is not None]
    return [*lines, (f"valid ({valid})", [e.rates[valid] for e in entries]), ("harm and valid", both)]


@plotting.plot_style()
def draw_curve(summary: Summary, title: str | None = None) -> Figure:
    """The picture as a matplotlib figure: rates in percent against α, with 95% bands."""
    figure, (axes,) = plotting.new_figure(518, 317)
    alphas = [float(entry.alpha) for entry in summary.line]
    for i, (label, rates) in enumerate(_series(summary)):
        # Where ED was measured at 0 or −1 too, base and aligned, which come first, stand for it.
        first = dict(reversed(list(zip(alphas, rates, strict=True))))
        xs = sorted(first)
        ys = [(100 * first[x].rate, 100 * first[x].low, 100 * first[x].high) for x in xs]
        plotting.draw_along_alpha(axes, xs, ys, i, label, shift=0.035 * i)
    _mark(axes, summary)
    plotting.percent_axis(axes)
    plotting.alpha_axis(axes, alphas)
    axes.set_ylabel("completions")
    axes.set_title(title or "What contrasting the pair gives away", fontsize=12, pad=22)
    axes.text(0, 1.03, _small_print(summary), transform=axes.transAxes, fontsize=8.5, color=GRAY)
    plotting.figure_legend(figure)
    return figure


def write_curve(summary: Summary, title: str | None = None) -> list[Path]:
    """Write curve.svg and curve.png into the run's folder; equal runs give equal files.

    Raises:
        StoreError: the folder cannot be written.
    """
    paths = [summary.folder / name for name in FILES]
    figure = draw_curve(summary, title)
    for path in paths:
        with atomic_path(path) as scratch:
            plotting.save(figure, scratch)
    return paths


def _mark(axes: Axes, summary: Summary) -> None:
    """Ring the aligned and the base model's harm rate, named in the gap between them, and that of the headline α."""
    for kind, side in (("aligned", 1), ("base", -1)):
        entry = summary.condition(kind)
        _ring(axes, float(entry.alpha), 100 * entry.rates[summary.harm_judge].rate, kind, side)
    if summary.headline.condition is not None:
        entry = summary.named(summary.headline.condition)
        _name_headline(axes, entry.alpha, 100 * entry.rates[summary.harm_judge].rate)


def _name_headline(axes: Axes, alpha: str, rate: float) -> None:
    """A ring, and a line down (or up) from it to where no curve is, with the name beside its end."""
    x, place = float(alpha), 18 if rate >= 50 else 72
    plotting.draw_ring(axes, x, rate)
    axes.plot([x, x], [rate + (-3 if rate >= 50 else 3), place], color=GRAY, linewidth=1)
    axes.annotate(
        f"headline\nα = {alpha}\n{rate:.1f}%",
        (x, place),
        xytext=(0, -3 if rate >= 50 else 3),
        textcoords="offset points",
        ha="center",
        va="top" if rate >= 50 else "bottom",
        fontsize=9,
        color=GRAY,
        bbox={"facecolor": PALETTE["paper"], "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _ring(axes: Axes, x: float, rate: float, name: str, side: int) -> None:
    """A ring with its name and rate, to the right of it (side 1) or to the left."""
    plotting.draw_ring(axes, x, rate)
    axes.annotate(
        f"{name}\n{rate:.1f}%",
        (x, rate),
        xytext=(11 * side, 3),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="bottom" if rate < 10 else "top" if rate > 90 else "center",
        fontsize=9,
        color=GRAY,
    )


def _small_print(summary: Summary) -> str:
    """What the figure depends on beside α: truncation changes the finding, so it is named with every picture."""
    said = summary.identity
    each = f" × {said['samples']} samples" if said["samples"] > 1 else ""
    sampled = f"temperature {said['temperature']:g}, top-p {said['top_p']:g}"
    return f"{summary.prompts} prompts{each}, {sampled}, 95% intervals"
