"""The page: what was found, in Markdown and as one HTML file that needs nothing else.

Written from results alone: every figure on it was measured by the run that writes it.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from eddecode.experiments.findings import plots as pictures
from eddecode.experiments.findings.finding import Table
from eddecode.experiments.findings.run import Plan, Result
from eddecode.experiments.pair_metrics import MAX_NEW_TOKENS
from eddecode.utils.files import atomic_write

PACKAGES = ("torch", "transformers", "tokenizers", "peft")
PICTURES = "findings"
"""Folder beside the Markdown page that its pictures lie in."""


@dataclass
class Section:
    """A heading, paragraphs, an optional picture (name, alternative text, SVG), tables."""

    title: str
    paragraphs: list[str]
    picture: tuple[str, str, str] | None = None
    tables: list[Table] = field(default_factory=list)


def write_page(plan: Plan, results: Sequence[Result], command: str) -> list[Path]:
    """Write findings.md with its pictures, and findings.html; returns the two pages."""
    opening, sections = _opening(plan, results, command), [_section(result) for result in results]
    folder = plan.out / PICTURES
    folder.mkdir(exist_ok=True)
    for section in sections:
        if section.picture is not None:
            name, _, svg = section.picture
            atomic_write(folder / f"{name}.svg", svg + "\n")
    pages = {"findings.md": _markdown(opening, sections), "findings.html": _html(opening, sections)}
    for name, text in pages.items():
        atomic_write(plan.out / name, text)
    return [plan.out / name for name in pages]


def _opening(plan: Plan, results: Sequence[Result], command: str) -> Section:
    scale = plan.scale
    recipes = [
        json.loads(path.read_text("utf-8"))["seconds"]
        for path in sorted((plan.out / "models").glob("*/recipe.json"))
    ]
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES if find_spec(name))
    hidden = ", ".join(str(shape.hidden) for shape in scale.sizes)
    held = sum(result.reproduced for result in results)
    seeds = f"Headline findings on {plan.seeds} seeds, the others on the first"
    seeds = seeds if plan.seeds > 1 else "Every finding on one seed"
    paragraphs = [
        "What is claimed about emulated disalignment (ED; Zhou et al., ACL 2024, arXiv 2402.12343), tried "
        "from scratch in the lab's small benign world, where a shop's agent is polite or RUDE and rude "
        "replies stand in for harm. Each finding is a claim with a criterion, evaluated by code; what does "
        "not reproduce is a result.",
        f"Command: `{command}`",
        f"{held} of {len(results)} reproduced. {seeds}; "
        f"{scale.requests} held-out requests per condition, one completion each, temperature 1, no truncation, "
        f"at most {MAX_NEW_TOKENS} tokens; base models of {scale.pretraining.steps} steps, widths {hidden}. "
        "Intervals are 95% Wilson intervals over requests. *Rude*: holds a word of the list (the audit's "
        "lexicon judge). *Valid*: the world's grammar can derive it (the audit's grammar judge). ED's best α "
        "is chosen on one half of the requests and judged on the other, both ways round; the α shown beside "
        "it is the best over all.",
        f"{len(recipes)} models were trained, in {sum(recipes):.0f} core seconds, with {packages}.",
    ]
    rows = [
        (str(r.finding.point), r.finding.title, _verdict(r), " / ".join(o.said for o in r.outcomes[:1]))
        for r in results
    ]
    return Section("The findings, reproduced from scratch", paragraphs, None, [Table("", _HEADS, rows)])


_HEADS = ("point", "finding", "verdict", "figures (first seed)")


def _verdict(result: Result) -> str:
    count = sum(outcome.holds for outcome in result.outcomes)
    seeds = f" ({count} of {len(result.outcomes)} seeds)" if len(result.outcomes) > 1 else ""
    return ("reproduced" if result.reproduced else "NOT reproduced") + seeds


def _section(result: Result) -> Section:
    finding = result.finding
    paragraphs = [
        f"Claim: {finding.claim}",
        f"Criterion: {finding.criterion}",
        f"Verdict: **{_verdict(result)}**",
    ]
    for i, outcome in enumerate(result.outcomes):
        paragraphs.append(f"Seed {i}: {outcome.said}." if len(result.outcomes) > 1 else f"{outcome.said}.")
    if finding.limits:
        paragraphs.append(f"Limits: {finding.limits}")
    picture = None
    if finding.draw is not None:
        picture = (finding.name, f"{finding.title}: picture", pictures.svg(finding.draw(result.outcomes)))
    return Section(f"{finding.point}. {finding.title}", paragraphs, picture, list(result.outcomes[0].tables))


# Markdown ----------------------------------------------------------------------------------------------------------


def _markdown(opening: Section, sections: Sequence[Section]) -> str:
    parts = [_markdown_section(opening, "#"), *(_markdown_section(section, "##") for section in sections)]
    return "\n\n".join(parts) + "\n"


def _markdown_section(section: Section, mark: str) -> str:
    parts = [f"{mark} {section.title}", *section.paragraphs]
    if section.picture is not None:
        parts.append(f"![{section.picture[1]}]({PICTURES}/{section.picture[0]}.svg)")
    for table in section.tables:
        if table.title:
            parts.append(f"*{table.title}*")
        rows = [table.heads, tuple("---" for _ in table.heads), *table.rows]
        parts.append(
            "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        )
    return "\n\n".join(parts)


# HTML --------------------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --line: #d0d0d0; --soft: #f3f3f3 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181b; --line: #3a3d42; --soft: #22252a } }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; max-width: 68rem;
  margin: 2rem auto; padding: 0 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0 1.5rem }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top }
th { background: var(--soft) }
figure { background: #ffffff; margin: 1rem 0; padding: .5rem; max-width: 62rem }
figure svg { max-width: 100%; height: auto }
code { background: var(--soft); padding: 0 .25rem }
"""


def _html(opening: Section, sections: Sequence[Section]) -> str:
    body = "\n".join([_html_section(opening, "h1"), *(_html_section(section, "h2") for section in sections)])
    title = html.escape(opening.title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _html_section(section: Section, tag: str) -> str:
    parts = [
        f"<{tag}>{html.escape(section.title)}</{tag}>",
        *(f"<p>{_marked(p)}</p>" for p in section.paragraphs),
    ]
    if section.picture is not None:
        parts.append(
            f'<figure role="img" aria-label="{html.escape(section.picture[1])}">{section.picture[2]}</figure>'
        )
    for table in section.tables:
        heads = "".join(f"<th>{html.escape(head)}</th>" for head in table.heads)
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
        )
        caption = f"<caption>{html.escape(table.title)}</caption>" if table.title else ""
        parts.append(f'<div class="wide"><table>{caption}<tr>{heads}</tr>\n{rows}</table></div>')
    return "\n".join(parts)


def _marked(text: str) -> str:
    """A paragraph's Markdown (code, bold, italics) as HTML."""
    for mark, tag in (("`", "code"), ("**", "strong"), ("*", "em")):
        pieces = (html.escape(text) if mark == "`" else text).split(mark)
        if len(pieces) % 2:
            text = "".join(f"<{tag}>{p}</{tag}>" if i % 2 else p for i, p in enumerate(pieces))
    return text
