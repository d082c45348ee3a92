"""The page of the findings, in Markdown with pictures beside it, and as one HTML file without other files.

The page is written from a `RunRecord` alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from eddecode.experiments.findings import plots
from eddecode.experiments.findings.experiment import ReplicatedResult, ResultTable
from eddecode.experiments.findings.record import RunRecord
from eddecode.experiments.pair_metrics import MAX_NEW_TOKENS
from eddecode.utils.files import atomic_write

PICTURES = "findings"
"""Folder beside the Markdown page with its pictures."""
_OVERVIEW = ("point", "finding", "verdict", "figures (first seed)")
_QUESTIONS = ("point", "question", "answer", "figures (first seed)")


@dataclass(frozen=True)
class Picture:
    """A picture of the page: file name without its ending, alternative text, SVG."""

    name: str
    text: str
    svg: str


@dataclass(frozen=True)
class PageSection:
    """A section of the page. Paragraphs are Markdown with `code`, **bold** and *italic* only."""

    title: str
    paragraphs: list[str]
    picture: Picture | None = None
    tables: list[ResultTable] = field(default_factory=list)


def write_page(
    record: RunRecord, out: Path, further: Sequence[tuple[ReplicatedResult, Sequence[str]]] = ()
) -> list[Path]:
    """Write findings.md with its pictures, and findings.html, into a folder; returns the two pages.

    `further` are results of experiments outside the toy language, each with paragraphs that say what was run.
    """
    sections = [_overview(record), *(_section(result, record.seeds) for result in record.results)]
    sections += [_section(result, len(result.results), facts) for result, facts in further]
    folder = out / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        if section.picture is not None:
            atomic_write(folder / f"{section.picture.name}.svg", section.picture.svg + "\n")
    html = _environment().get_template("page.html.j2").render(sections=sections)
    pages = {"findings.md": markdown(sections), "findings.html": html}
    for name, text in pages.items():
        atomic_write(out / name, text)
    return [out / name for name in pages]


def _overview(record: RunRecord) -> PageSection:
    size, results = record.size, [r for r in record.results if not r.experiment.question]
    questions = [r for r in record.results if r.experiment.question]
    packages = ", ".join(f"{name} {version}" for name, version in record.packages.items())
    widths = ", ".join(str(shape["hidden"]) for shape in size["shapes"])
    reproduced = sum(result.reproduced for result in results)
    seeds = (
        f"Headline findings were measured on {record.seeds} seeds, the others on the first"
        if record.seeds > 1
        else "Every finding was measured on one seed"
    )
    paragraphs = [
        "The claims about emulated disalignment (ED; Zhou et al., ACL 2024, arXiv 2402.12343), tested from scratch on "
        "small models of a harmless toy language. In that language the agent of a shop is polite or RUDE, and rude "
        "replies stand for harm. Each finding is a claim with a criterion that code evaluates. A claim that is not "
        "reproduced is a result too.",
        f"Command: `{record.command}`",
        f"{reproduced} of {len(results)} reproduced. {seeds}; {size['requests']} held-out requests per condition, one "
        f"completion each, temperature 1, no truncation, at most {MAX_NEW_TOKENS} tokens; base models trained for "
        f"{size['pretraining']['steps']} steps, hidden sizes {widths}. Intervals are 95% Wilson intervals over "
        "requests. *Rude*: contains a word of the list (the lexicon judge of the audit). *Valid*: the grammar of the "
        "language can derive it (the grammar judge of the audit). The best α of ED is chosen on one half of the "
        "requests and evaluated on the other half, both ways; the α shown beside it is the best over all requests.",
        f"{record.models} models were trained, in {record.core_seconds:.0f} core seconds, with {packages}.",
    ]
    paragraphs += _provenance(record)
    tables = [ResultTable("", _OVERVIEW, [_overview_row(r) for r in results])]
    if questions:
        title = "Questions that the paper leaves open; yes where the criterion is met"
        tables.append(ResultTable(title, _QUESTIONS, [_overview_row(r) for r in questions]))
    return PageSection("The findings, reproduced from scratch", paragraphs, None, tables)


def _overview_row(result: ReplicatedResult) -> tuple[str, ...]:
    shown = result.pooled or result.results[0]
    return (str(result.experiment.point), result.experiment.title, _verdict(result), shown.summary)


def _provenance(record: RunRecord) -> list[str]:
    """Which code measured what on which processor, and what has not been measured."""
    groups: dict[str, list[str]] = {}
    for result in record.results:
        measured = result.measured
        where = (
            f"commit {measured['commit']} on {measured['processor']}" if measured else "an unrecorded commit"
        )
        groups.setdefault(where, []).append(f"`{result.experiment.name}`")
    said = [f"Measured at {where}: {', '.join(names)}." for where, names in groups.items()]
    if record.missing:
        said.append(f"Not measured yet: {', '.join(f'`{name}`' for name in record.missing)}.")
    return said if any(r.measured for r in record.results) else []


def _verdict(result: ReplicatedResult) -> str:
    count, n = sum(each.holds for each in result.results), len(result.results)
    if result.pooled is not None:
        seeds = f" ({n} seed{'s' * (n > 1)} together)"
    else:
        seeds = f" ({count} of {n} seeds)" if n > 1 else ""
    yes, no = ("yes", "no") if result.experiment.question else ("reproduced", "NOT reproduced")
    return (yes if result.reproduced else no) + seeds


def _section(result: ReplicatedResult, seeds: int, facts: Sequence[str] = ()) -> PageSection:
    experiment, results = result.experiment, result.results
    paragraphs = [
        *facts,
        f"Claim: {experiment.claim}",
        f"Criterion: {experiment.criterion}",
        f"{'Answer' if experiment.question else 'Verdict'}: **{_verdict(result)}**",
    ]
    if experiment.headline and len(results) < seeds:
        paragraphs.append(f"Measured on {len(results)} of {seeds} seeds so far.")
    if result.pooled is not None:
        paragraphs.append(f"{result.pooled.summary[0].upper()}{result.pooled.summary[1:]}.")
    for i, each in enumerate(results):
        paragraphs.append(f"Seed {i}: {each.summary}." if len(results) > 1 else f"{each.summary}.")
    if experiment.limits:
        paragraphs.append(f"Limits: {experiment.limits}")
    picture = None
    if experiment.draw is not None:
        svg = plots.svg(partial(experiment.draw, results))
        picture = Picture(experiment.name, f"{experiment.title}: picture", svg)
    tables = [*(result.pooled.tables if result.pooled is not None else []), *results[0].tables]
    return PageSection(f"{experiment.point}. {experiment.title}", paragraphs, picture, tables)


def markdown(sections: Sequence[PageSection]) -> str:
    """The sections as one Markdown page; the first one has the heading of the page."""
    parts = []
    for i, section in enumerate(sections):
        parts += [f"{'##' if i else '#'} {section.title}", *section.paragraphs]
        if section.picture is not None:
            parts.append(f"![{section.picture.text}]({PICTURES}/{section.picture.name}.svg)")
        for table in section.tables:
            if table.title:
                parts.append(f"*{table.title}*")
            rows = [table.columns, tuple("---" for _ in table.columns), *table.rows]
            lines = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def inline_html(text: str) -> Markup:
    """A paragraph's `code`, **bold** and *italic* as HTML; everything else is escaped."""
    html = str(escape(text))
    for pattern, tag in ((r"`([^`]+)`", "code"), (r"\*\*([^*]+)\*\*", "strong"), (r"\*([^*]+)\*", "em")):
        html = re.sub(pattern, rf"<{tag}>\1</{tag}>", html)
    return Markup(html)


@cache
def _environment() -> Environment:
    loader = PackageLoader("eddecode.experiments.findings", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline_html"] = inline_html
    return environment
