"""The report's charts: harm and utility against α on one scale, implied reward by depth, intervals in table cells.

A chart is made of the summary's figures, and its description says them in words. It is drawn by matplotlib only when a
page needs it; `inline_svg` turns the drawing into an element of the page that takes its colors from the page's style.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from eddecode.audit.analysis.summary import Summary
from eddecode.audit.analysis.summary_parts import ConditionSummary
from eddecode.audit.analysis.wording import format_alpha, format_decimal, format_percent
from eddecode.audit.report.layout import Chart
from eddecode.audit.stats.estimates import AnyEstimate, Estimate
from eddecode.utils import plotting
from eddecode.utils.plotting import INK, PALETTE, Interval, format_tick
from eddecode.utils.terminal import escape_control_chars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

WIDTH, HEIGHT = 420, 300  # CSS pixels; a page scales it to its column
LONGEST_LABEL = 44  # characters
_LABEL_HEIGHT = 0.09  # of the panel, with the space around it
HARM, BASE, ALIGNED, VALID = 0, 1, 2, 3  # numbers of series: color, marker and dash
_CSS_NAMES = {color: name for name, color in PALETTE.items()}


@dataclass(frozen=True)
class ChartPoint:
    """A position along the horizontal axis, and the figure there."""

    x: float
    figure: AnyEstimate


@dataclass(frozen=True)
class Series:
    """A line of a chart; `style` is its number in `plotting.series_style`."""

    label: str
    points: Sequence[ChartPoint]
    style: int


def inline_svg(chart: Chart, number: int = 0, css_class: str = "chart") -> Markup:
    """The chart as an <svg> element of a page, in the page's colors (CSS variables) and fonts.

    Args:
        chart: what to draw.
        number: a different one for each chart of a page, so that no two elements have the same id.
        css_class: of the element.
    """
    with plotting.plot_style(**{"font.size": 12}):
        figure = chart.draw()
    text = plotting.svg_text(figure, salt=f"eddecode {number}", transparent=True)
    view = re.search(r' viewBox="[^"]*"', text)
    text = text[text.index(">", text.index("<svg")) + 1 :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", text)  # all but those of markers and clip paths
    text = re.sub(r"\s*\n\s*", " ", text).replace("xlink:href", "href").replace("> <", "><")
    text = re.sub(r' style="([^"]*)"', _attributes, text)
    title, description = (escape(escape_control_chars(part)) for part in (chart.title, chart.description))
    label = ". ".join(part for part in (title, description) if part)
    return Markup(
        f'<svg class="{css_class}"{view[0] if view else ""} role="img" aria-label="{label}">'
        f"<title>{title or label}</title><desc>{description}</desc>{text.strip()}"
    )


def _attributes(style: re.Match[str]) -> str:
    """A style of matplotlib's as attributes, without the font's name, and with CSS variables for colors."""
    written = re.sub(r"font: (?:(\w+) )?([\d.]+px) [^;]*", r"font-weight: \1; font-size: \2", style[1])
    pairs = (part.split(": ", 1) for part in written.split("; ") if not part.startswith("font-family"))
    return "".join(
        f' {name}="{f"var(--{_CSS_NAMES[value]})" if value in _CSS_NAMES else value}"'
        for name, value in pairs
    )


# Charts against α ---------------------------------------------------------------------------------------------------


def harm_chart(summary: Summary, limits: Sequence[tuple[str, float]] = ()) -> Chart | None:
    """Harm rate against α with its band; base, aligned and the headline α marked.

    Args:
        summary: of the run.
        limits: (name, harm rate) of lines across that the attack must stay below.
    """
    harm = _along_alpha(summary, summary.harm)
    if not harm:
        return None
    series = [Series(f"harm ({summary.harm_judge})", harm, HARM)]
    valid = _along_alpha(summary, lambda entry: entry.harm_and_valid)
    if valid:
        series.append(Series("harm and valid", valid, VALID))
    figures = [point.figure for one in series for point in one.points]
    aligned = summary.harm(summary.find("aligned"))
    lines = [Estimate(rate, rate, rate) for _, rate in limits]
    top = _top_of_rates([*figures, *([aligned] if aligned else []), *lines])
    words = described(harm)
    if aligned and aligned.value is not None:
        words = f"Aligned: {format_percent(aligned.value)}. By α, {words}"
    words += "".join(f". {name.capitalize()}, at {format_percent(rate)}" for name, rate in limits)
    return Chart(
        "Harm rate against α",
        words,
        partial(_draw_against_alpha, summary, series, (0.0, top), name_models=True, limits=limits),
    )


def utility_chart(summary: Summary) -> Chart | None:
    """Utility lost against the base model, by α, with the bound; without it the rate of valid completions."""
    loss = _along_alpha(summary, lambda entry: entry.utility.loss if entry.utility else None)
    if loss:
        bound = summary.headline.bound
        base = [ChartPoint(0.0, Estimate(0.0, 0.0, 0.0))]
        points = sorted([*base, *(point for point in loss if point.x != 0)], key=lambda point: point.x)
        figures = [point.figure for point in points]
        highest = max((f.high if f.high is not None else f.value or 0) for f in figures)
        lowest = min((f.low if f.low is not None else f.value or 0) for f in figures)
        span = (min(lowest, 0.0), max(highest, 1.5 * (bound or 0), 0.05))
        series = Series(f"utility lost ({summary.headline.utility or 'against base'})", points, BASE)
        draw = partial(_draw_against_alpha, summary, [series], span, bound=bound)
        return Chart("Utility lost against α", described(points), draw)
    judge = summary.validity_judge
    valid = _along_alpha(summary, lambda entry: entry.rates.get(str(judge)))
    if not valid:
        return None
    draw = partial(_draw_against_alpha, summary, [Series(f"valid ({judge})", valid, BASE)], (0.0, 1.0))
    return Chart("Valid completions against α", described(valid), draw)


def _draw_against_alpha(
    summary: Summary,
    series: Sequence[Series],
    span: tuple[float, float],
    bound: float | None = None,
    name_models: bool = False,
    limits: Sequence[tuple[str, float]] = (),
) -> Drawing:
    """Lines with bands in percent against α, the headline α, and the bound on lost utility or the two models."""
    figure, (axes,) = plotting.new_figure(WIDTH, HEIGHT)
    alphas = [float(entry.alpha) for entry in summary.line]
    low, high = 100 * span[0], 100 * span[1]
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    plotting.number_axis(axes.yaxis, lambda value: format_tick(value, "%"))
    axes.set_xlim(min(alphas) - 0.15, max(*alphas, 0.5) * 1.12)
    plotting.alpha_axis(axes, alphas)
    for shift, one in enumerate(series):
        ys = [_interval(point.figure, span, 100) for point in one.points]
        xs = [point.x for point in one.points]
        plotting.draw_along_alpha(axes, xs, ys, one.style, _short(one.label), shift=0.04 * shift)
    if summary.headline.alpha is not None:
        _mark_headline(axes, summary.headline.alpha)
    if bound is not None:
        axes.axhline(100 * bound, color=PALETTE["bad"], linewidth=1.2, linestyle=(0, (6, 3)))
        _note(axes, f"bound {format_percent(bound)}", (-0.5, 100 * bound), (0, 5), ha="center")
    _draw_limits(axes, limits, span[1])
    if name_models:
        _mark_models(axes, summary)
    _legend(figure)
    return figure


def _draw_limits(axes: Axes, limits: Sequence[tuple[str, float]], highest: float) -> None:
    """A line for each limit, named above it; below it where another limit lies close above, or the panel ends."""
    right = axes.get_xlim()[1]
    ordered = sorted(limits, key=lambda limit: limit[1])
    above = [*(rate for _, rate in ordered[1:]), math.inf]
    for (name, rate), following in zip(ordered, above, strict=False):  # one more, without any limit
        # A limit is for the attack, which begins above 0.
        axes.hlines(100 * rate, 0.0, right, color=PALETTE["bad"], linewidth=1.4, linestyle=(0, (6, 3)))
        below = rate > 0.9 * highest or following - rate < _LABEL_HEIGHT * highest
        offset, va = ((-2, -4), "top") if below else ((-2, 4), "bottom")
        _note(axes, name, (right, 100 * rate), offset, ha="right", va=va)


def _mark_headline(axes: Axes, alpha: str) -> None:
    """A dotted line at the headline α, named above the panel."""
    x = float(alpha)
    axes.axvline(x, color=INK, linewidth=1, linestyle=(0, (2, 3)))
    at_the_edge = axes.transData.transform((x, 0))[0] > axes.transAxes.transform((0.8, 0))[0]
    axes.annotate(
        f"headline {format_alpha(alpha)}",
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right" if at_the_edge else "center",
        color=INK,
        weight="bold",
    )


def _mark_models(axes: Axes, summary: Summary) -> None:
    """Base and aligned by name and rate, in the gap between α = −1 and 0, and a line across at the base's rate."""
    for kind, side in (("aligned", 1), ("base", -1)):
        entry = summary.find(kind)
        figure = summary.harm(entry)
        if entry is None or figure is None or figure.value is None:
            continue
        alpha, rate = float(entry.alpha), 100 * figure.value
        if kind == "base":
            axes.hlines(
                rate, alpha, axes.get_xlim()[1], color=plotting.GRAY, linewidth=1, linestyle=(0, (5, 4))
            )
        plotting.draw_ring(axes, alpha, rate)
        place = (rate - axes.get_ylim()[0]) / (axes.get_ylim()[1] - axes.get_ylim()[0])
        va = "bottom" if place < 0.1 else "top" if place > 0.9 else "center"
        ha = "left" if side > 0 else "right"
        _note(axes, f"{kind}\n{format_percent(figure.value)}", (alpha, rate), (10 * side, 0), ha=ha, va=va)


def _note(axes: Axes, text: str, xy: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """Text beside a point, on the color of the page."""
    ground = {"facecolor": PALETTE["paper"], "edgecolor": "none", "alpha": 0.75, "pad": 0}
    axes.annotate(text, xy, xytext=offset, textcoords="offset points", color=INK, bbox=ground, **look)


# Other charts -------------------------------------------------------------------------------------------------------


def depth_chart(summary: Summary) -> Chart | None:
    """Implied reward by position in the completion: of base, aligned and the headline α."""
    wanted = {"aligned": ALIGNED, "base": BASE, str(summary.headline.condition): HARM}
    series = []
    for row in summary.judge_free.depth:
        points = [
            ChartPoint(1 + (p.first + p.last) / 2, Estimate(p.mean, p.low, p.high))
            for p in row.positions
            if p.mean is not None
        ]
        if points and row.condition in wanted:
            entry = summary.find(row.condition)
            series.append(Series(entry.label if entry else row.condition, points, wanted[row.condition]))
    if not series:
        return None
    words = ". ".join(f"{one.label}: {described(one.points, 1, ' nats')}" for one in series)
    return Chart(
        "Implied reward by position in the completion (nats per token)", words, partial(_draw_depth, series)
    )


def _draw_depth(series: Sequence[Series]) -> Drawing:
    """Nats per token; positions by doubling, because most happens at the start of a completion."""
    figure, (axes,) = plotting.new_figure(WIDTH, HEIGHT)
    ends = [e for s in series for p in s.points for e in (p.figure.value, p.figure.low, p.figure.high)]
    known = [end for end in ends if end is not None]
    span = (min(*known, 0.0), max(*known, 0.0))
    for one in series:
        ys = [_interval(point.figure, span) for point in one.points]
        plotting.draw_line(axes, [point.x for point in one.points], ys, one.style, _short(one.label))
    last = max(2.0, *(point.x for one in series for point in one.points))
    ticks = [2**power for power in range(int(math.log2(last)) + 1)]
    plotting.log_axis(axes, ticks, [format_tick(tick) for tick in ticks])
    axes.set_xlim(0.95, last * 1.05)
    axes.set_xlabel("token of the completion (logarithmic)")
    axes.axhline(0, color=plotting.GRAY, linewidth=1)
    plotting.number_axis(axes.yaxis)
    _legend(figure)
    return figure


def interval_cell(
    figures: Sequence[AnyEstimate | None], low: float, high: float, zero: float | None, words: str
) -> Chart:
    """A table cell with its row's figures on the scale of the whole column: a marker with its interval each.

    Args:
        figures: in the order of their styles; None leaves one out.
        low, high: ends of the scale, shared by the column.
        zero: where a line of reference is drawn; None: nowhere.
        words: the same in words.
    """

    def draw() -> Drawing:
        from matplotlib.figure import Figure as Canvas

        height = 10 + 11 * len(figures)
        drawing = Canvas(figsize=(180 / 72, height / 72))
        axes = drawing.add_axes((0.045, 0, 0.91, 1))
        axes.set_axis_off()
        axes.set(xlim=(low, high), ylim=(height, 0))
        axes.plot([low, high], [height - 3] * 2, color=plotting.RULE, linewidth=1, clip_on=False)
        if zero is not None:
            axes.plot(
                [zero] * 2, [2, height - 3], color=plotting.GRAY, linewidth=1, linestyle="--", clip_on=False
            )
        for i, figure in enumerate(figures):
            if figure is not None and figure.value is not None:
                value, start, end = _interval(figure, (low, high))
                look = plotting.series_style(i)
                axes.plot([start, end], [8 + 11 * i] * 2, color=look["color"], linewidth=1.6, clip_on=False)
                # A scatter of one point needs no element with an id, and a page has many such cells.
                axes.scatter(
                    [value], [8 + 11 * i], s=36, color=look["color"], marker=look["marker"], clip_on=False
                )
        return drawing

    return Chart("", words, draw)


def described(points: Sequence[ChartPoint], scale: float = 100, unit: str = "%") -> str:
    """A series in words: `0: 38.8%, 0.3: 55.0%`."""
    return ", ".join(
        f"{format_tick(p.x)}: {format_decimal(scale * p.figure.value)}{unit}"
        for p in points
        if p.figure.value is not None
    )


def _legend(figure: Drawing) -> None:
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    columns = 3 if sum(map(len, labels)) < 36 else 2 if max(map(len, labels)) <= LONGEST_LABEL // 2 else 1
    plotting.figure_legend(figure, "outside upper left", columns)


def _short(label: str) -> str:
    label = escape_control_chars(label)
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def _interval(figure: AnyEstimate, span: tuple[float, float], scale: float = 1) -> Interval:
    """The figure as numbers; where nothing bounds it on a side, its interval ends where the axis does."""
    low, high = (
        end if known is None else known for known, end in zip((figure.low, figure.high), span, strict=True)
    )
    return scale * (figure.value or 0.0), scale * low, scale * high


def _along_alpha(
    summary: Summary, figure_of: Callable[[ConditionSummary], AnyEstimate | None]
) -> list[ChartPoint]:
    """One point per α, ascending; where ED was measured at 0 or −1 too, base and aligned stand for it."""
    found: dict[float, ChartPoint] = {}
    for entry in summary.line:
        figure = figure_of(entry)
        if figure is not None and figure.value is not None:
            found.setdefault(float(entry.alpha), ChartPoint(float(entry.alpha), figure))
    return [found[alpha] for alpha in sorted(found)]


def _top_of_rates(figures: Sequence[AnyEstimate]) -> float:
    """Where an axis of rates ends: low rates get a finer scale."""
    highest = max(figure.high if figure.high is not None else figure.value or 0.0 for figure in figures)
    return next(top for top in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if highest <= top or top == 1.0)
