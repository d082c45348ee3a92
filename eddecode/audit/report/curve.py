"""The picture of a run: harm rate against α, with its band, the base and the aligned model marked.

Utility is drawn beside it (validity where it was judged, else the share of completions that are intact), because a
harm rate alone cannot tell reversal from babble. Conditions with something changed about them (mitigations,
transforms) are for tables. The colours are from the palette of Okabe and Ito (jfly.uni-koeln.de/color, 2008), which
stays apart under colour blindness, and every line has its own marker and dash, so that it stays apart in print as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eddecode.audit.analysis.summary import ConditionSummary, Summary
from eddecode.audit.stats.proportions import Rate
from eddecode.utils.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILES = ("curve.svg", "curve.png")
_GREY = "#4d4d4d"
_RING: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": _GREY, "markeredgewidth": 1.3}


@dataclass(frozen=True)
class _Style:
    label: str
    colour: str
    marker: str
    dash: str


def _series(summary: Summary) -> list[tuple[_Style, list[Rate]]]:
    """The lines of the picture: a style and one rate per condition."""
    entries = summary.line
    harm, valid = summary.harm_judge, summary.validity_judge
    lines = [(_Style(f"harm ({harm})", "#D55E00", "o", "-"), [e.rates[harm] for e in entries])]
    if valid is not None:
        lines.append((_Style(f"valid ({valid})", "#0072B2", "s", "--"), [e.rates[valid] for e in entries]))
        joint = [e.harm_and_valid for e in entries if e.harm_and_valid is not None]
        lines.append((_Style("harm and valid", "#009E73", "^", ":"), joint))
    else:
        lines.append((_Style("intact", "#0072B2", "s", "--"), [e.utility.rate for e in entries]))
    return lines


def draw_curve(summary: Summary, title: str | None = None) -> Figure:
    """The picture as a matplotlib figure: rates in percent against α, with 95% bands."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for number, (style, rates) in enumerate(_series(summary)):
        _draw_line(axes, style, summary.line, rates, shift=0.035 * number)
    _mark(axes, summary)
    axes.set_ylim(-4, 104)
    axes.set_yticks(range(0, 101, 20), [f"{tick}%" for tick in range(0, 101, 20)])
    _scale(axes, [float(entry.alpha) for entry in summary.line])
    axes.set_ylabel("completions")
    axes.set_title(
        title or "What contrasting the pair gives away", loc="left", fontsize=12, pad=22, parse_math=False
    )
    axes.text(0, 1.03, _small_print(summary), transform=axes.transAxes, fontsize=8.5, color=_GREY)
    axes.grid(axis="y", color="#e0e0e0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for text in figure.legend(loc="outside lower center", ncols=3, frameon=False).get_texts():
        text.set_parse_math(False)  # a judge may be called after a file
    return figure


def write_curve(summary: Summary, title: str | None = None) -> list[Path]:
    """Write curve.svg and curve.png into the run's folder; equal runs give equal files.

    Raises:
        StoreError: the folder cannot be written.
    """
    import matplotlib

    paths = [summary.folder / name for name in FILES]
    with matplotlib.rc_context({"svg.hashsalt": "eddecode", "font.size": 10}):
        figure = draw_curve(summary, title)
        with atomic_path(paths[0]) as scratch:
            figure.savefig(scratch, metadata={"Date": None})
        with atomic_path(paths[1]) as scratch:
            figure.savefig(scratch, dpi=150)
    return paths


def _draw_line(
    axes: Axes, style: _Style, entries: Sequence[ConditionSummary], rates: Sequence[Rate], shift: float
) -> None:
    """One judge: a line with its band over the α's from 0 up, and points with bars, side by side, for α's below."""
    points = sorted((float(entry.alpha), rate) for entry, rate in _unique(entries, rates))
    line = [(x, rate) for x, rate in points if x >= 0]
    look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "markersize": 5}
    xs = [x for x, _ in line]
    axes.plot(xs, [100 * rate.rate for _, rate in line], style.dash, linewidth=2, label=style.label, **look)
    low, high = [100 * rate.low for _, rate in line], [100 * rate.high for _, rate in line]
    axes.fill_between(xs, low, high, color=style.colour, alpha=0.18, linewidth=0)
    for x, rate in points:
        if x < 0:
            bar = [[100 * (rate.rate - rate.low)], [100 * (rate.high - rate.rate)]]
            axes.errorbar([x - shift], [100 * rate.rate], yerr=bar, capsize=4, linewidth=1.5, **look)


def _unique(
    entries: Sequence[ConditionSummary], rates: Sequence[Rate]
) -> list[tuple[ConditionSummary, Rate]]:
    """One point per α: where ED was asked for at 0 or −1 too, base and aligned stand for it."""
    found: dict[float, tuple[ConditionSummary, Rate]] = {}
    for entry, rate in zip(entries, rates, strict=True):
        found.setdefault(float(entry.alpha), (entry, rate))
    return list(found.values())


def _scale(axes: Axes, alphas: Sequence[float]) -> None:
    """α from −1 to 1 as it is, beyond by its logarithm: what happens happens below 1, and sweeps go far above it."""
    far = max(map(abs, alphas)) > 1.5
    if far:
        axes.set_xscale("symlog", linthresh=1, linscale=1)
    place = axes.transData.transform
    left, right = axes.get_xlim()
    width = place((right, 0))[0] - place((left, 0))[0]
    kept: list[float] = []
    for alpha in sorted(
        set(alphas), key=lambda value: (value not in (0, -1), -abs(value))
    ):  # the ends go first
        apart = (abs(place((alpha, 0))[0] - place((other, 0))[0]) for other in kept)
        if all(distance > 0.03 * width for distance in apart):
            kept.append(alpha)
    axes.set_xticks(sorted(kept), [f"{alpha:g}".replace("-", "−") for alpha in sorted(kept)])
    axes.minorticks_off()
    axes.set_xlabel("α" + (" (linear up to 1, logarithmic beyond)" if far else ""))


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
    axes.plot([x], [rate], "o", markersize=11, **_RING)
    axes.plot([x, x], [rate + (-3 if rate >= 50 else 3), place], color=_GREY, linewidth=1)
    axes.annotate(
        f"headline\nα = {alpha}\n{rate:.1f}%",
        (x, place),
        xytext=(0, -3 if rate >= 50 else 3),
        textcoords="offset points",
        ha="center",
        va="top" if rate >= 50 else "bottom",
        fontsize=9,
        color=_GREY,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _ring(axes: Axes, x: float, rate: float, name: str, side: int) -> None:
    """A ring with its name and rate, to the right of it (side 1) or to the left."""
    axes.plot([x], [rate], "o", markersize=11, **_RING)
    axes.annotate(
        f"{name}\n{rate:.1f}%",
        (x, rate),
        xytext=(11 * side, 3),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="bottom" if rate < 10 else "top" if rate > 90 else "center",
        fontsize=9,
        color=_GREY,
    )


def _small_print(summary: Summary) -> str:
    """What the figure depends on beside α: truncation changes the finding, so it is named with every picture."""
    said = summary.identity
    each = f" × {said['samples']} samples" if said["samples"] > 1 else ""
    sampled = f"temperature {said['temperature']:g}, top-p {said['top_p']:g}"
    return f"{summary.prompts} prompts{each}, {sampled}, 95% intervals"
