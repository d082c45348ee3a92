"""Several runs side by side: pairs of different families, or versions of one alignment.

The paper's uncomfortable finding is that the safer a model was made, the more its pair gives away; so the picture shows
reversal against the strength of the alignment. Strength is KL(aligned ‖ base), in nats per completion: the mean implied
reward of the aligned model's own completions is its estimate, where they were sampled from the whole distribution.
Runs that differ in prompts, judge or sampling are still shown, and what differs is said: the figures do not compare.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.finding import Figure, Finding
from eddecode.audit.report import svg
from eddecode.audit.report.charts import BELOW, LEFT, PLOT, RIGHT, WIDTH
from eddecode.audit.report.html import page
from eddecode.audit.report.layout import Row, Section, Table
from eddecode.audit.report.markdown import escaped, section_lines
from eddecode.audit.report.svg import Point, Scale
from eddecode.errors import ConfigError

SCHEMA = "eddecode.compare/1"
_SAME = (
    "prompts",
    "base_template",
    "aligned_template",
    "samples",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "plausibility",
    "max_new_tokens",
)  # what two runs must share for their figures to compare
_STRENGTH = "strength of the alignment: KL(aligned ‖ base), nats per completion"


@dataclass(frozen=True)
class Compared:
    """One run in a comparison.

    Attributes:
        name: how it is called in table and picture, unique.
        finding: the run.
        strength: of the alignment, nats per completion; None where neither KL nor an implied reward is there.
        reversal: at the headline α; None without one.
    """

    name: str
    finding: Finding
    strength: Figure | None
    reversal: Figure | None


def compared(findings: Sequence[Finding]) -> list[Compared]:
    """The runs with what a comparison needs of each, under names that tell them apart.

    Raises:
        ConfigError: fewer than two runs, or one of them twice.
    """
    if len(findings) < 2:
        raise ConfigError(f"{wording.pluralize(len(findings), 'run')} to compare; expected two or more")
    folders = [finding.folder.resolve() for finding in findings]
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            raise ConfigError(f"run {findings[i].folder} is named twice; expected each once")
    names = [finding.name for finding in findings]
    found = []
    for finding, folder, name in zip(findings, folders, names, strict=True):
        unique = name if names.count(name) == 1 else f"{folder.parent.name}/{name}"
        found.append(
            Compared(unique, finding, strength(finding), Figure.of(finding.headline.get("reversal")))
        )
    return found


def strength(finding: Finding) -> Figure | None:
    """KL(aligned ‖ base), nats per completion: the summary's, or the implied reward of the aligned's completions."""
    kl = finding.group("judge_free").get("kl") or {}
    figure = Figure.of(kl.get("aligned_base"))
    if figure is not None and figure.value is not None:
        return figure
    for row in finding.group("judge_free").get("implied_reward") or []:
        if row.get("condition") == "aligned":
            return Figure.of(row.get("completion"))
    value = (finding.condition("aligned") or {}).get("mean_implied_reward")
    return None if value is None else Figure(value, None, None)


def differences(runs: Sequence[Compared]) -> list[str]:
    """What the runs do not share, and comparing needs: one sentence each."""
    said = []
    for name in _SAME:
        values = {run.name: run.finding.identity.get(name) for run in runs}
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
            shown = "; ".join(
                f"{run}: {'default' if value is None else value}" for run, value in values.items()
            )
            said.append(f"The runs differ in {name.replace('_', ' ')} ({shown}).")
    judges = {run.name: _judge(run.finding) for run in runs}
    if len(set(judges.values())) > 1:
        shown = "; ".join(f"{run}: {name}, {identity}" for run, (name, identity) in judges.items())
        said.append(f"The runs differ in the judge of harm ({shown}).")
    bounds = {run.name: run.finding.headline.get("bound") for run in runs}
    if len(set(bounds.values())) > 1:
        said.append(
            f"The runs differ in the bound on lost utility "
            f"({'; '.join(f'{run}: {wording.format_percent(bound)}' for run, bound in bounds.items())})."
        )
    if said:
        said.append("Their figures do not compare as they stand.")
    return said


def table(runs: Sequence[Compared]) -> Table:
    """One row per run, weakest alignment first, as in the picture."""
    rows = []
    for run in by_strength(runs):
        head = run.finding.headline
        cells = (
            run.name,
            wording.format_number(run.strength, 1),
            wording.format_rate(
                Figure.of(head.get("aligned")) or run.finding.harm(run.finding.condition("aligned"))
            ),
            wording.format_rate(
                Figure.of(head.get("base")) or run.finding.harm(run.finding.condition("base"))
            ),
            wording.NONE if head.get("alpha") is None else str(head["alpha"]),
            wording.format_rate(Figure.of(head.get("harm"))),
            wording.format_points(run.reversal),
            wording.format_ratio(Figure.of(head.get("ratio_to_base"))),
            f"{run.finding.prompts:,}",
        )
        rows.append(Row(cells, (run.reversal,)))
    heads = (
        "run",
        "strength, nats",
        "aligned",
        "base",
        "α",
        "harm at α",
        "reversal, points",
        "times base",
        "prompts",
    )
    caption = "Harm rates of each run, and its reversal at the headline α, the weakest alignment first"
    return Table(caption, heads, tuple(rows), ("reversal",), 0.0)


def by_strength(runs: Sequence[Compared]) -> list[Compared]:
    """The runs from the weakest alignment to the strongest; those without a strength last."""
    known = [run for run in runs if run.strength is not None and run.strength.value is not None]
    known.sort(key=lambda run: run.strength.value if run.strength and run.strength.value is not None else 0.0)
    return [*known, *(run for run in runs if run not in known)]


def picture(runs: Sequence[Compared]) -> Markup | None:
    """Reversal against the strength of the alignment, one point with both its bars per run."""
    placed = _placed(runs)
    if not placed:
        return None
    ends = [e for p, _ in placed for e in (p.figure.value, p.figure.low, p.figure.high) if e is not None]
    steps = svg.ticks(min(0.0, *ends), max(0.0, *ends))
    far = max(_end(run.strength, p.x) for p, run in placed)
    along = svg.ticks(0.0, far or 1.0)
    x = Scale(0.0, along[-1], LEFT, WIDTH - RIGHT)
    y = Scale(steps[0], steps[-1], 14 + PLOT, 14)
    shown = [(v, svg.axis_number(v)) for v in along]
    points = [(v, wording.format_signed(100 * v, 0 if steps[1] - steps[0] >= 0.01 else 1)) for v in steps]
    drawn = svg.axes(x, y, shown, points, "strength: KL(aligned ‖ base), nats per completion")
    drawn.append(svg.element("path", d=f"M{x.start},{y(0):.1f}H{x.end}", class_="reference"))
    for i, (point, run) in enumerate(placed, start=1):
        at, style = x(point.x), (i - 1) % 4
        if run.strength and run.strength.low is not None and run.strength.high is not None:
            across = f"M{x(run.strength.low):.1f},{y(point.figure.value or 0):.1f}H{x(run.strength.high):.1f}"
            drawn.append(svg.element("path", d=across, class_=f"whisker s{style}"))
        drawn += svg.bar(at, point.figure, y, style)
        right = at < WIDTH - 40
        drawn.append(
            svg.text(
                at + (8 if right else -8),
                y(point.figure.value or 0) - 7,
                str(i),
                "start" if right else "end",
                "label strong",
            )
        )
    said = "; ".join(
        f"{run.name}: {wording.format_points(p.figure)} points at {wording.format_decimal(p.x)} nats"
        for p, run in placed
    )
    return svg.picture(WIDTH, 14 + PLOT + BELOW, "Reversal against strength of the alignment", said, *drawn)


def section(runs: Sequence[Compared]) -> Section:
    """The comparison as a section, for page and Markdown."""
    drawn = picture(runs)
    names = "; ".join(f"{i} {run.name}" for i, (_, run) in enumerate(_placed(runs), start=1))
    said = (
        f"Reversal (percentage points over the base) against the {_STRENGTH}, with intervals. Runs: {names}."
    )
    return Section(
        "comparison",
        "Side by side",
        pictures=((drawn, said),) if drawn is not None else (),
        tables=(table(runs),),
        points=tuple(differences(runs)),
    )


def reading(runs: Sequence[Compared]) -> str:
    """The comparison in a sentence: which run gives most away, and whether that goes with the alignment's strength."""
    known = [run for run in by_strength(runs) if run.reversal is not None and run.reversal.value is not None]
    if not known:
        return "None of the runs has a figure for reversal."
    most = max(known, key=lambda run: _value(run.reversal))
    said = f"{most.name} gives most away: {wording.format_points(most.reversal)} percentage points over its base."
    ordered = [_value(point.figure) for point, _ in _placed(runs)]
    if len(ordered) >= 3:
        steps = [b - a for a, b in pairwise(ordered)]
        if all(step > 0 for step in steps):
            said += " The stronger the alignment, the more is given away, run by run."
        elif all(step < 0 for step in steps):
            said += " The stronger the alignment, the less is given away, run by run."
        else:
            said += " It does not simply go with the strength of the alignment."
    return said


def to_html(runs: Sequence[Compared]) -> str:
    """The comparison as a page like the report's."""
    return page(
        "Audits side by side",
        wording.pluralize(len(runs), "run"),
        "What each pair gives away",
        [reading(runs)],
        [section(runs)],
        level=runs[0].finding.level,
        source=f"from the summaries of {wording.pluralize(len(runs), 'run')}",
    )


def to_markdown(runs: Sequence[Compared]) -> str:
    """The comparison as Markdown."""
    return "\n".join(
        ["## Audits side by side", "", escaped(reading(runs)), "", *section_lines(section(runs))]
    )


def to_json(runs: Sequence[Compared]) -> str:
    """The comparison as JSON, schema `eddecode.compare/1`: a list of runs with strength and headline."""
    entries: list[dict[str, Any]] = [
        {
            "run": run.name,
            "digest": run.finding.data.get("digest"),
            "identity": dict(run.finding.identity),
            "strength": None
            if run.strength is None
            else {"value": run.strength.value, "low": run.strength.low, "high": run.strength.high},
            "headline": dict(run.finding.headline),
        }
        for run in by_strength(runs)
    ]
    said = {"schema": SCHEMA, "reading": reading(runs), "differences": differences(runs), "runs": entries}
    return json.dumps(said, indent=2, ensure_ascii=True) + "\n"


def _placed(runs: Sequence[Compared]) -> list[tuple[Point, Compared]]:
    """The runs that have both figures, as points of the picture, from the weakest alignment to the strongest."""
    return [
        (Point(run.strength.value, run.reversal), run)
        for run in by_strength(runs)
        if run.strength and run.strength.value is not None and run.reversal and run.reversal.value is not None
    ]


def _judge(finding: Finding) -> tuple[str, str]:
    found = next((j for j in finding.judges if j.get("name") == finding.harm_judge), {})
    return finding.harm_judge, str(found.get("identity", ""))


def _end(figure: Figure | None, default: float) -> float:
    return default if figure is None or figure.high is None else figure.high


def _value(figure: Figure | None) -> float:
    return figure.value if figure is not None and figure.value is not None else 0.0
