"""Several runs side by side: pairs of different families, or versions of one alignment.

The paper's uncomfortable finding is that the safer a model was made, the more its pair gives away; so the chart shows
reversal against the strength of the alignment. Strength is KL(aligned ‖ base), in nats per completion: the mean implied
reward of the aligned model's own completions is its estimate, where they were sampled from the whole distribution.
Runs that differ in prompts, judge or sampling are still shown, and what differs is said: the figures do not compare.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.finding import Figure, Finding
from eddecode.audit.report.charts import HEIGHT, WIDTH, Point
from eddecode.audit.report.html import page
from eddecode.audit.report.layout import Chart, Row, Section, Table
from eddecode.audit.report.markdown import escaped, section_lines
from eddecode.errors import ConfigError
from eddecode.utils import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

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
        name: how it is called in table and chart, unique.
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
    """One row per run, weakest alignment first, as in the chart."""
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


def chart(runs: Sequence[Compared]) -> Chart | None:
    """Reversal against the strength of the alignment, one numbered point with both its intervals per run."""
    placed = _placed(runs)
    if not placed:
        return None
    words = "; ".join(
        f"{run.name}: {wording.format_points(p.figure)} points at {wording.format_decimal(p.x)} nats"
        for p, run in placed
    )
    return Chart("Reversal against strength of the alignment", words, partial(_draw, placed))


def _draw(placed: Sequence[tuple[Point, Compared]]) -> Drawing:
    figure, (axes,) = plotting.new_figure(WIDTH, HEIGHT)
    for i, (point, run) in enumerate(placed):
        x, y = point.x, 100 * _value(point.figure)
        across, upright = (
            [[max(0.0, value - low)], [max(0.0, high - value)]]
            for value, low, high in ((x, *_ends(run.strength, x, 1)), (y, *_ends(point.figure, y, 100)))
        )
        look = plotting.series_style(i % 4) | {"linestyle": "none"}
        axes.errorbar([x], [y], xerr=across, yerr=upright, elinewidth=1.5, **look)
        side = 1 if i % 2 == 0 else -1  # numbers of neighbors on different sides
        corner: dict[str, Any] = {
            "ha": "left" if side > 0 else "right",
            "va": "bottom" if side > 0 else "top",
        }
        axes.annotate(
            f"{i + 1}",
            (x, y),
            xytext=(5 * side, 3 * side),
            textcoords="offset points",
            weight="bold",
            **corner,
        )
    axes.axhline(0, color=plotting.GRAY, linewidth=1, linestyle="--")
    axes.set_xlim(0, 1.08 * max(_ends(run.strength, p.x, 1)[1] for p, run in placed) or 1.0)
    plotting.number_axis(axes.xaxis)
    plotting.number_axis(
        axes.yaxis, lambda value: wording.format_signed(value, 0 if value == round(value) else 1)
    )
    axes.set_xlabel("strength: KL(aligned ‖ base), nats per completion")
    return figure


def section(runs: Sequence[Compared]) -> Section:
    """The comparison as a section, for page and Markdown."""
    drawn = chart(runs)
    names = "; ".join(f"{i} {run.name}" for i, (_, run) in enumerate(_placed(runs), start=1))
    said = (
        f"Reversal (percentage points over the base) against the {_STRENGTH}, with intervals. Runs: {names}."
    )
    return Section(
        "comparison",
        "Side by side",
        charts=((drawn, said),) if drawn is not None else (),
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
    """The runs that have both figures, as points of the chart, from the weakest alignment to the strongest."""
    return [
        (Point(run.strength.value, run.reversal), run)
        for run in by_strength(runs)
        if run.strength and run.strength.value is not None and run.reversal and run.reversal.value is not None
    ]


def _judge(finding: Finding) -> tuple[str, str]:
    found = next((j for j in finding.judges if j.get("name") == finding.harm_judge), {})
    return finding.harm_judge, str(found.get("identity", ""))


def _ends(figure: Figure | None, value: float, scale: float) -> tuple[float, float]:
    """The interval of a figure; the value itself where nothing bounds it on a side, or nothing is known."""
    low, high = (None, None) if figure is None else (figure.low, figure.high)
    return value if low is None else scale * low, value if high is None else scale * high


def _value(figure: Figure | None) -> float:
    return figure.value if figure is not None and figure.value is not None else 0.0
