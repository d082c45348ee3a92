"""The report's pictures: harm and utility against α, side by side on one scale of α; and what needs no judge, by depth.

A picture is made of the summary's figures and says them in words as well, in its description. The base and the aligned
model are named in the gap between α = −1 and 0, which is free of lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from eddecode.audit.analysis.finding import Figure, Finding
from eddecode.audit.analysis.wording import format_alpha, format_percent
from eddecode.audit.report import svg
from eddecode.audit.report.svg import Point, Scale, Series

WIDTH, LEFT, RIGHT, PLOT, BELOW = 460, 50, 14, 216, 42
HARM, BASE, ALIGNED, VALID = 0, 1, 2, 3  # styles: colour, marker and dash


def harm_picture(finding: Finding) -> Markup | None:
    """Harm rate against α with its band; base, aligned and the headline α marked."""
    judge = finding.harm_judge
    harm = _along(finding, finding.harm)
    if not harm:
        return None
    series = [Series(f"harm ({judge})", harm, HARM)]
    valid = _along(finding, lambda entry: Figure.of(entry.get("harm_and_valid")))
    if valid:
        series.append(Series("harm and valid", valid, VALID))
    figures = [point.figure for one in series for point in one.points]
    aligned = finding.harm(finding.condition("aligned"))
    top = _share_top([*figures, *([aligned] if aligned else [])])
    title, said = "Harm rate against α", svg.described(harm)
    if aligned and aligned.value is not None:
        said = f"Aligned: {format_percent(aligned.value)}. By α, {said}"
    return _panel(finding, series, (0.0, top), title, said, marks=True)


def utility_picture(finding: Finding) -> Markup | None:
    """Utility lost against the base model, by α, with the bound; without it the rate of valid completions."""
    loss = _along(finding, lambda entry: Figure.of(_part(entry, "utility").get("loss")))
    if loss:
        bound = finding.headline.get("bound")
        base = [Point(0.0, Figure(0.0, 0.0, 0.0))]
        points = sorted([*base, *(point for point in loss if point.x != 0)], key=lambda point: point.x)
        figures = [point.figure for point in points]
        highest = max((f.high if f.high is not None else f.value or 0) for f in figures)
        lowest = min((f.low if f.low is not None else f.value or 0) for f in figures)
        span = (min(lowest, 0.0), max(highest, 1.5 * (bound or 0), 0.05))
        series = [Series(f"utility lost ({finding.headline.get('utility') or 'against base'})", points, BASE)]
        return _panel(finding, series, span, "Utility lost against α", svg.described(points), bound=bound)
    judge = next((str(j.get("name")) for j in finding.judges if j.get("role") == "validity"), None)
    valid = _along(finding, lambda entry: Figure.of(_part(entry, "rates").get(str(judge))))
    if not valid:
        return None
    series = [Series(f"valid ({judge})", valid, BASE)]
    return _panel(finding, series, (0.0, 1.0), "Valid completions against α", svg.described(valid))


def depth_picture(finding: Finding) -> Markup | None:
    """Implied reward by position in the completion: of base, aligned and the headline α."""
    best = finding.headline.get("condition")
    wanted = {"aligned": ALIGNED, "base": BASE, str(best): HARM}
    series = []
    for row in _rows(finding.group("judge_free").get("depth")):
        name = str(row.get("condition"))
        if name == "ed":  # by kind and α, where the summary does not give the name
            name = f"ed@{row.get('alpha')}"
        points = [
            Point(
                1 + (float(p["first"]) + float(p["last"])) / 2,
                Figure(p.get("mean"), p.get("low"), p.get("high")),
            )
            for p in _rows(row.get("positions"))
            if p.get("mean") is not None
        ]
        if points and name in wanted:
            entry = finding.condition(name)
            series.append(Series(str(entry["label"] if entry else name), points, wanted[name]))
    if not series:
        return None
    title = "Implied reward by position in the completion"
    ends = [end for s in series for p in s.points for end in (p.figure.value, p.figure.low, p.figure.high)]
    known = [end for end in ends if end is not None] or [0.0]
    steps = svg.ticks(min(*known, 0.0), max(*known, 0.0))
    keys, top = svg.legend(series, LEFT, 12, WIDTH - LEFT - RIGHT)
    y = Scale(steps[0], steps[-1], top + 8 + PLOT, top + 8)
    far = max(p.x for s in series for p in s.points)
    x = Scale(1, max(far, 2), LEFT, WIDTH - RIGHT, math.log)  # by doubling: what happens happens at the start
    along = [float(2**power) for power in range(int(math.log2(max(far, 2))) + 1)]
    drawn = svg.axes(
        x,
        y,
        [(v, svg.axis_number(v)) for v in along],
        [(v, svg.axis_number(v)) for v in steps],
        "token of the completion (logarithmic)",
    )
    drawn += [svg.element("path", d=f"M{x.start},{y(0):.1f}H{x.end}", class_="axis")]
    for one in series:
        drawn += svg.line(one, x, y)
    said = ". ".join(f"{one.label}: {svg.described(one.points, 1, ' nats')}" for one in series)
    return svg.picture(WIDTH, int(top + 8 + PLOT + BELOW), f"{title} (nats per token)", said, *keys, *drawn)


def _panel(
    finding: Finding,
    series: Sequence[Series],
    span: tuple[float, float],
    title: str,
    said: str,
    marks: bool = False,
    bound: float | None = None,
) -> Markup:
    """One picture against α: axes, lines with bands, and what is marked on it."""
    keys, top = svg.legend(series, LEFT, 12, WIDTH - LEFT - RIGHT)
    top += 18  # room for the name of the headline α
    steps = svg.ticks(*span)
    alphas = [float(entry["alpha"]) for entry in finding.line]
    x = Scale(min(alphas), max(*alphas, 0.5), LEFT, WIDTH - RIGHT, svg.bend_alpha)
    y = Scale(steps[0], steps[-1], top + PLOT, top)
    shown = svg.thinned(alphas, x, 30, first=(0.0, -1.0))
    far = max(map(abs, alphas)) > 1.5
    label = "α" + (" (linear up to 1, logarithmic beyond)" if far else "")
    drawn = svg.axes(x, y, [(a, svg.axis_number(a)) for a in shown], [(s, _tick(s)) for s in steps], label)
    best = finding.headline.get("alpha")
    if best is not None:
        at = x(float(best))
        drawn.append(svg.element("path", d=f"M{at:.1f},{y.end:.1f}V{y.start:.1f}", class_="best"))
        anchor = "end" if at > WIDTH - 70 else "middle"
        drawn.append(svg.text(at, y.end - 6, f"headline {format_alpha(best)}", anchor, "label strong"))
    if bound is not None:
        drawn.append(svg.element("path", d=f"M{x.start},{y(bound):.1f}H{x.end}", class_="bound"))
        drawn.append(svg.text(x(-0.5), y(bound) - 5, f"bound {format_percent(bound)}", "middle"))
    for one in series:
        drawn += _series(one, x, y)
    if marks:
        drawn += _marks(finding, x, y)
    return svg.picture(WIDTH, int(top + PLOT + BELOW), title, said, *keys, *drawn)


def _series(one: Series, x: Scale, y: Scale) -> list[Markup]:
    """A line with its band from α = 0 up; α's below are models of their own and stand as points with bars."""
    below = [point for point in one.points if point.x < 0]
    drawn = svg.line(Series(one.label, [point for point in one.points if point.x >= 0], one.style), x, y)
    for point in below:
        drawn += svg.bar(x(point.x) + (4 if one.style else 0), point.figure, y, one.style)
    return drawn


def _marks(finding: Finding, x: Scale, y: Scale) -> list[Markup]:
    """Base and aligned by name and rate, and the base's rate as a line across, which reversal is measured from."""
    drawn = []
    for kind, style, side in (("aligned", ALIGNED, 1), ("base", BASE, -1)):
        entry = finding.condition(kind)
        figure = finding.harm(entry)
        if entry is None or figure is None or figure.value is None:
            continue
        at, high = x(float(entry["alpha"])), y(figure.value)
        if kind == "base":
            drawn.append(svg.element("path", d=f"M{at:.1f},{high:.1f}H{x.end}", class_="reference"))
        drawn.append(svg.marker(at, high, style, 6, hollow=True))
        first = min(max(high - 12, y.end + 10), y.start - 24)  # two lines, inside the plot
        place, anchor = at + 10 * side, "start" if side > 0 else "end"
        drawn.append(svg.text(place, first, kind, anchor, "label strong"))
        drawn.append(svg.text(place, first + 14, format_percent(figure.value), anchor))
    return drawn


def _along(finding: Finding, figure_of: Any) -> list[Point]:
    """One point per α, from low to high; where ED was asked for at 0 or −1 too, base and aligned stand for it."""
    found: dict[float, Point] = {}
    for entry in finding.line:
        figure = figure_of(entry)
        if figure is not None and figure.value is not None:
            found.setdefault(float(entry["alpha"]), Point(float(entry["alpha"]), figure))
    return [found[alpha] for alpha in sorted(found)]


def _share_top(figures: Sequence[Figure]) -> float:
    """Where an axis of rates ends: low rates get a finer scale, high ones the whole."""
    highest = max(figure.high if figure.high is not None else figure.value or 0.0 for figure in figures)
    return next(top for top in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if highest <= top or top == 1.0)


def _tick(value: float) -> str:
    return f"{svg.axis_number(round(100 * value, 6))}%"


def _part(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = entry.get(name)
    return value if isinstance(value, Mapping) else {}


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
