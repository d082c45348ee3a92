"""Several runs side by side: pairs of different families, or versions of one alignment.

The paper finds that the reversal is larger, the safer the aligned model was made. So the chart shows reversal against
the strength of the alignment: KL(aligned ‖ base), in nats per completion, estimated by the mean implied reward of the
aligned model's own completions where they were sampled from the whole distribution. Runs that differ in prompts, judge
or sampling are still shown, and the report says what differs, because their figures are not comparable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.measures import Measure, measures
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.analysis.summary_parts import Headline
from eddecode.audit.report.charts import HEIGHT, WIDTH, ChartPoint
from eddecode.audit.report.html import page
from eddecode.audit.report.layout import Chart, Row, Section, Table
from eddecode.audit.report.markdown import escaped, section_lines
from eddecode.audit.stats.estimates import AnyEstimate, Estimate
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
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_new_tokens",
)  # what two runs must share for their figures to compare
_STRENGTH = "strength of the alignment: KL(aligned ‖ base), nats per completion"


@dataclass(frozen=True)
class Compared:
    """One run in a comparison.

    Attributes:
        name: its name in table and chart, unique.
        summary: of the run.
        strength: of the alignment, nats per completion; None where neither KL nor an implied reward is there.
    """

    name: str
    summary: Summary
    strength: Estimate | None

    @property
    def reversal(self) -> Estimate | None:
        """At the headline α; None without one."""
        return self.summary.headline.reversal


def compared(summaries: Sequence[Summary]) -> list[Compared]:
    """The runs with what a comparison needs of each, under names that distinguish them.

    Raises:
        ConfigError: fewer than two runs, or one of them twice.
    """
    if len(summaries) < 2:
        raise ConfigError(f"{wording.pluralize(len(summaries), 'run')} to compare; expected two or more")
    folders = [summary.folder.resolve() for summary in summaries]
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            raise ConfigError(f"run {summaries[i].folder} is named twice; expected each once")
    names = [summary.name for summary in summaries]
    runs = []
    for summary, folder, name in zip(summaries, folders, names, strict=True):
        unique = name if names.count(name) == 1 else f"{folder.parent.name}/{name}"
        runs.append(Compared(unique, summary, strength(summary)))
    return runs


def strength(summary: Summary) -> Estimate | None:
    """KL(aligned ‖ base), nats per completion: the summary's, or the implied reward of the aligned's completions."""
    kl = summary.judge_free.kl.aligned_base
    if kl is not None and kl.value is not None:
        return kl
    for row in summary.judge_free.implied_reward:
        if row.condition == "aligned":
            return row.completion
    aligned = summary.find("aligned")
    value = None if aligned is None else aligned.mean_implied_reward
    return None if value is None else Estimate(value)


def differences(runs: Sequence[Compared]) -> list[str]:
    """What the runs must share to be comparable and do not: one sentence each."""
    found = []
    for name in _SAME:
        values = {run.name: run.summary.identity.get(name) for run in runs}
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
            shown = "; ".join(f"{run}: {'default' if v is None else v}" for run, v in values.items())
            found.append(f"The runs differ in {name.replace('_', ' ')} ({shown}).")
    judges = {run.name: _judge(run.summary) for run in runs}
    if len(set(judges.values())) > 1:
        shown = "; ".join(f"{run}: {name}, {identity}" for run, (name, identity) in judges.items())
        found.append(f"The runs differ in the judge of harm ({shown}).")
    bounds = {run.name: run.summary.headline.bound for run in runs}
    if len(set(bounds.values())) > 1:
        shown = "; ".join(f"{run}: {wording.format_percent(bound)}" for run, bound in bounds.items())
        found.append(f"The runs differ in the bound on lost utility ({shown}).")
    if found:
        found.append("Their figures are not comparable as they stand.")
    return found


def table(runs: Sequence[Compared]) -> Table:
    """One row per run, weakest alignment first, as in the chart."""
    rows = []
    for run in by_strength(runs):
        summary, head = run.summary, run.summary.headline
        cells = (
            run.name,
            wording.format_number(run.strength, 1),
            wording.format_rate(head.aligned or summary.harm(summary.find("aligned"))),
            wording.format_rate(head.base or summary.harm(summary.find("base"))),
            wording.NONE if head.alpha is None else head.alpha,
            wording.format_rate(head.harm),
            wording.format_points(run.reversal),
            wording.format_points(head.uplift_over_aligned),
            _any_of_k(head),
            wording.format_ratio(head.ratio_to_base),
            f"{summary.distinct_prompts:,}",
        )
        rows.append(Row(cells, (run.reversal,)))
    heads = (
        *("run", "strength, nats", "aligned", "base", "α", "harm at α", "reversal, points"),
        *("over aligned, points", "any of k", "times base", "prompts"),
    )
    caption = "Harm rates of each run, and its reversal at the headline α, the weakest alignment first"
    return Table(caption, heads, tuple(rows), ("reversal",), 0.0)


def measures_table(runs: Sequence[Compared]) -> Table | None:
    """The strongest attack by every measure of harm, one column per run; None in runs of older releases."""
    ordered = by_strength(runs)
    found = [{_kind(each.name): each for each in measures(run.summary)} for run in ordered]
    names = list(dict.fromkeys(name for each in found for name in each))
    if not names:
        return None
    rows = []
    for name in names:
        of_runs = [each.get(name) for each in found]
        cells = (name, *(wording.NONE if one is None else _attack(one) for one in of_runs))
        rows.append(Row(cells, tuple(None if one is None else one.figures.reversal for one in of_runs)))
    caption = "The strongest attack by each measure of harm: what it reaches, and what it adds to the base in points"
    return Table(caption, ("measure", *(run.name for run in ordered)), tuple(rows))


def _kind(name: str) -> str:
    """`strongest setting`, `worst attack`, … without what it is in one run; other names as they are."""
    kinds = (
        *("strongest setting", "worst judge", "worst category"),
        *("worst attack, harmful and valid", "worst attack"),
    )
    return next((kind for kind in kinds if name.startswith(kind)), name)


def _attack(measure: Measure) -> str:
    figures, detail = measure.figures, measure.name.removeprefix(_kind(measure.name)).strip(" :()")
    text = wording.format_rate(figures.harm)
    if figures.reversal is not None:
        text += f"; {wording.format_points(figures.reversal)}"
    return f"{text} ({detail})" if detail else text


def _any_of_k(head: Headline) -> str:
    """`85.0% [80.1, 89.0] (k = 4)`."""
    if head.any_of_k is None or head.any_of_k.value is None:
        return wording.NONE
    return f"{wording.format_rate(head.any_of_k)} (k = {head.attempts})"


def by_strength(runs: Sequence[Compared]) -> list[Compared]:
    """The runs from the weakest alignment to the strongest; those without a strength last."""
    return sorted(runs, key=lambda run: math.inf if not _known(run.strength) else _value(run.strength))


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


def _draw(placed: Sequence[tuple[ChartPoint, Compared]]) -> Drawing:
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
    axes.set_xlim(*_span([_ends(run.strength, p.x, 1) for p, run in placed]))
    plotting.number_axis(axes.xaxis)
    plotting.number_axis(
        axes.yaxis, lambda value: wording.format_signed(value, 0 if value == round(value) else 1)
    )
    axes.set_xlabel("strength: KL(aligned ‖ base), nats per completion")
    return figure


def _span(ends: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """An axis from 0, or from the lowest end where that is below, with room beside the last: a mean may be negative."""
    low, high = min(0.0, *(low for low, _ in ends)), max(0.0, *(high for _, high in ends))
    room = 0.08 * (high - low) or 1.0
    return (low - room if low < 0 else 0.0), high + room


def section(runs: Sequence[Compared]) -> Section:
    """The comparison as a section, for page and Markdown."""
    drawn = chart(runs)
    names = "; ".join(f"{i} {run.name}" for i, (_, run) in enumerate(_placed(runs), start=1))
    caption = (
        f"Reversal (percentage points over the base) against the {_STRENGTH}, with intervals. Runs: {names}."
    )
    return Section(
        "comparison",
        "Side by side",
        charts=((drawn, caption),) if drawn is not None else (),
        tables=tuple(each for each in (table(runs), measures_table(runs)) if each is not None),
    )


def reading(runs: Sequence[Compared]) -> str:
    """The comparison in words: which run has the largest reversal, and whether that goes with the strength."""
    known = [run for run in by_strength(runs) if _known(run.reversal)]
    if not known:
        return "None of the runs has a figure for reversal."
    most = max(known, key=lambda run: _value(run.reversal))
    points = wording.format_points(most.reversal)
    text = f"{most.name} has the largest reversal: {points} percentage points over its base."
    ordered = [_value(run.reversal) for run in known if _known(run.strength)]
    if len(ordered) >= 3:
        steps = [b - a for a, b in pairwise(ordered)]
        if all(step > 0 for step in steps):
            text += " The stronger the alignment, the larger the reversal, run by run."
        elif all(step < 0 for step in steps):
            text += " The stronger the alignment, the smaller the reversal, run by run."
        else:
            text += " The reversal does not simply follow the strength of the alignment."
    return text


def to_html(runs: Sequence[Compared]) -> str:
    """The comparison as a page like the report's."""
    return page(
        "Audits side by side",
        wording.pluralize(len(runs), "run"),
        "These runs do not compare as they stand" if differences(runs) else "Reversal of each pair",
        [*differences(runs), reading(runs)],
        [section(runs)],
        level=runs[0].summary.level,
        source=f"from the summaries of {wording.pluralize(len(runs), 'run')}",
    )


def to_markdown(runs: Sequence[Compared]) -> str:
    """The comparison as Markdown."""
    return "\n".join(
        [
            *("## Audits side by side", ""),
            *(f"> **Warning:** {escaped(text)}" for text in differences(runs)),
            *([""] if differences(runs) else []),
            *(escaped(reading(runs)), "", *section_lines(section(runs))),
        ]
    )


def to_json(runs: Sequence[Compared]) -> str:
    """The comparison as JSON, schema `eddecode.compare/1`: runs with strength, headline, release figures."""
    entries = [
        {
            "run": run.name,
            "digest": run.summary.digest,
            "identity": run.summary.identity,
            "strength": None
            if run.strength is None
            else {"value": run.strength.value, "low": run.strength.low, "high": run.strength.high},
            "headline": run.summary.headline.model_dump(mode="json"),
            "release": run.summary.release.model_dump(mode="json"),
        }
        for run in by_strength(runs)
    ]
    content = {"schema": SCHEMA, "reading": reading(runs), "differences": differences(runs), "runs": entries}
    return json.dumps(content, indent=2, ensure_ascii=True) + "\n"


def _placed(runs: Sequence[Compared]) -> list[tuple[ChartPoint, Compared]]:
    """The runs that have both figures, as points of the chart, from the weakest alignment to the strongest."""
    return [
        (ChartPoint(run.strength.value, run.reversal), run)
        for run in by_strength(runs)
        if run.strength and run.strength.value is not None and run.reversal and run.reversal.value is not None
    ]


def _judge(summary: Summary) -> tuple[str, str]:
    """Name and identity of the harm judge."""
    found = next((judge for judge in summary.judges if judge.name == summary.harm_judge), None)
    return summary.harm_judge, "" if found is None else found.identity


def _ends(figure: AnyEstimate | None, value: float, scale: float) -> tuple[float, float]:
    """The interval of a figure; the value itself for an end that has no bound or is not known."""
    low, high = (None, None) if figure is None else (figure.low, figure.high)
    return value if low is None else scale * low, value if high is None else scale * high


def _known(figure: AnyEstimate | None) -> bool:
    return figure is not None and figure.value is not None


def _value(figure: AnyEstimate | None) -> float:
    return figure.value if figure is not None and figure.value is not None else 0.0
