"""Pictures as SVG text that lives inside a page: elements, a scale, axes, lines with bands, and points with bars.

Written out by hand and not by matplotlib, for one reason: an SVG inside the page takes its colours from the page's
style (`class="s1"` and not `fill="#D55E00"`), so that one picture serves light, dark and print. All text goes through
markupsafe; there is no other way into an element. Series differ by colour, marker and dash at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from eddecode.audit.analysis.finding import Figure
from eddecode.audit.analysis.wording import MINUS, format_decimal
from eddecode.utils.terminal import escape_control_chars

CHARACTER = 6.6  # px: mean width of a character at 12 px, to keep labels apart


def element(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """An SVG element; `class_` and `font_size` become `class` and `font-size`, text is escaped."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_attribute(value))}"'
        for key, value in attributes.items()
    )
    inside = "".join(
        child if isinstance(child, Markup) else escape(escape_control_chars(child)) for child in children
    )
    return Markup(f"<{name}{written}>{inside}</{name}>" if children else f"<{name}{written}/>")


def picture(width: int, height: int, title: str, description: str, *children: Markup) -> Markup:
    """A whole picture with its name and its description for those who cannot see it."""
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *children,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{title}. {description}",
        preserveAspectRatio="xMidYMid meet",
    )


@dataclass(frozen=True)
class Scale:
    """Values to pixels along one axis, by way of `bend` where the axis is not linear."""

    low: float
    high: float
    start: float
    end: float
    bend: Callable[[float], float] = float

    def __call__(self, value: float) -> float:
        """The pixel of a value; values beyond the ends stay at them."""
        low, high = self.bend(self.low), self.bend(self.high)
        share = (self.bend(value) - low) / ((high - low) or 1.0)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def bend_alpha(alpha: float) -> float:
    """α as it is from −1 to 1, beyond by its logarithm: what happens happens below 1, and sweeps go far above it."""
    return alpha if abs(alpha) <= 1 else math.copysign(1 + math.log10(abs(alpha)), alpha)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from low to high, about as many as wanted, both ends covered."""
    span = (high - low) or 1.0
    unit = 10 ** math.floor(math.log10(span / wanted))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if span / (unit * m) <= wanted + 1e-9)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Point:
    """A place along the x axis, and the figure there."""

    x: float
    figure: Figure


@dataclass(frozen=True)
class Series:
    """A line of a picture: its number picks colour, dash and marker from the page's style."""

    label: str
    points: Sequence[Point]
    style: int


MARKERS: tuple[Callable[[float, float, float], dict[str, object]], ...] = (
    lambda x, y, r: {"d": f"M{x - r:.1f},{y:.1f}a{r},{r} 0 1,0 {2 * r},0a{r},{r} 0 1,0 {-2 * r},0z"},
    lambda x, y, r: {"d": f"M{x - r:.1f},{y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z"},
    lambda x, y, r: {"d": f"M{x:.1f},{y - r:.1f}L{x + r:.1f},{y + r:.1f}H{x - r:.1f}z"},
    lambda x, y, r: {
        "d": f"M{x:.1f},{y - r:.1f}L{x + r:.1f},{y:.1f}L{x:.1f},{y + r:.1f}L{x - r:.1f},{y:.1f}z"
    },
)


def marker(x: float, y: float, style: int, radius: float = 3.5, hollow: bool = False) -> Markup:
    """The marker of a series."""
    shape = MARKERS[style % len(MARKERS)](x, y, radius)
    return element("path", class_=f"mark s{style}{' hollow' if hollow else ''}", **shape)


def line(series: Series, x: Scale, y: Scale) -> list[Markup]:
    """A series as a band, a line over it, and markers."""
    seen = [(p, p.figure.value) for p in series.points if p.figure.value is not None]
    if not seen:
        return []
    drawn = []
    tops = [(x(p.x), y(y.high if p.figure.high is None else p.figure.high)) for p, _ in seen]
    bottoms = [(x(p.x), y(y.low if p.figure.low is None else p.figure.low)) for p, _ in seen]
    path = "L".join(f"{a:.1f},{b:.1f}" for a, b in [*tops, *reversed(bottoms)])
    drawn.append(element("path", d=f"M{path}Z", class_=f"band s{series.style}"))
    middle = [(x(p.x), y(value)) for p, value in seen]
    path = "L".join(f"{a:.1f},{b:.1f}" for a, b in middle)
    drawn.append(element("path", d=f"M{path}", class_=f"line s{series.style}"))
    return [*drawn, *(marker(a, b, series.style) for a, b in middle)]


def bar(x: float, figure: Figure, y: Scale, style: int, hollow: bool = False) -> list[Markup]:
    """One figure as a marker with the bar of its interval, upright."""
    if figure.value is None:
        return []
    low, high = (
        y(y.low if figure.low is None else figure.low),
        y(y.high if figure.high is None else figure.high),
    )
    stroke = element("path", d=f"M{x:.1f},{low:.1f}V{high:.1f}", class_=f"whisker s{style}")
    return [stroke, marker(x, y(figure.value), style, hollow=hollow)]


def axes(
    x: Scale,
    y: Scale,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
) -> list[Markup]:
    """Horizontal grid lines with their labels, and the x axis with its own."""
    drawn = []
    for value, said in y_ticks:
        at = y(value)
        drawn.append(element("path", d=f"M{x.start:.1f},{at:.1f}H{x.end:.1f}", class_="grid"))
        drawn.append(text(x.start - 6, at + 4, said, "end"))
    for value, said in x_ticks:
        drawn.append(element("path", d=f"M{x(value):.1f},{y.start:.1f}v4", class_="tick"))
        drawn.append(text(x(value), y.start + 17, said, "middle"))
    drawn.append(element("path", d=f"M{x.start:.1f},{y.start:.1f}H{x.end:.1f}", class_="axis"))
    drawn.append(text((x.start + x.end) / 2, y.start + 34, x_label, "middle"))
    return drawn


def text(x: float, y: float, said: str, anchor: str = "start", class_: str = "label") -> Markup:
    """A line of text at a place."""
    return element("text", said, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def legend(series: Sequence[Series], x: float, y: float, width: float) -> tuple[list[Markup], int]:
    """One entry per series, side by side while they fit, and the height that it takes."""
    drawn, at, row = [], x, 0
    for one in series:
        said = one.label if len(one.label) <= 44 else one.label[:43] + "…"
        wide = 30 + CHARACTER * len(said)
        if at > x and at + wide > x + width:
            at, row = x, row + 1
        place = y + 18 * row
        drawn.append(element("path", d=f"M{at:.1f},{place:.1f}h22", class_=f"line s{one.style}"))
        drawn.append(marker(at + 11, place, one.style))
        drawn.append(text(at + 27, place + 4, said))
        at += wide + 10
    return drawn, 18 * (row + 1)


def thinned(values: Sequence[float], x: Scale, gap: float, first: Sequence[float] = ()) -> list[float]:
    """The values that can be labelled without touching: those of `first` before all others, then from afar."""
    kept: list[float] = []
    for value in sorted(set(values), key=lambda v: (v not in first, -abs(v))):
        if all(abs(x(value) - x(other)) >= gap for other in kept):
            kept.append(value)
    return sorted(kept)


def axis_number(value: float) -> str:
    """A tick's label: as short as it can be."""
    return f"{value:g}".replace("-", MINUS)


def _attribute(value: object) -> str:
    return escape_control_chars(f"{value:g}" if isinstance(value, float) else str(value))


def forest(
    figures: Sequence[Figure | None], low: float, high: float, zero: float | None, said: str
) -> Markup:
    """A cell of a table that shows its figures on a common scale: one marker with its bar per figure.

    Args:
        figures: in the order of their styles; None leaves one out.
        low, high: ends of the scale, shared by the column.
        zero: where a line of reference is drawn; None: nowhere.
        said: the same in words.
    """
    x = Scale(low, high, 8, 172)
    height = 10 + 11 * len(figures)
    drawn = [element("path", d=f"M8,{height - 3}H172", class_="grid")]
    if zero is not None:
        drawn.append(element("path", d=f"M{x(zero):.1f},2V{height - 3}", class_="reference"))
    for i, figure in enumerate(figures):
        if figure is None or figure.value is None:
            continue
        at = 8 + 11 * i
        ends = [x(low if figure.low is None else figure.low), x(high if figure.high is None else figure.high)]
        drawn.append(element("path", d=f"M{ends[0]:.1f},{at}H{ends[1]:.1f}", class_=f"whisker s{i}"))
        drawn.append(marker(x(figure.value), at, i))
    return element("svg", *drawn, viewBox=f"0 0 180 {height}", role="img", aria_label=said, class_="forest")


def described(points: Sequence[Point], scale: float = 100, unit: str = "%") -> str:
    """A series in words: `0: 38.8%, 0.3: 55.0%`."""
    return ", ".join(
        f"{axis_number(p.x)}: {format_decimal(scale * p.figure.value)}{unit}"
        for p in points
        if p.figure.value is not None
    )
