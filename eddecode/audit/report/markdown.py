"""The report without charts: a Markdown section for a model card, and JSON for programs.

In Markdown, what comes from the run (names of judges, files, categories) is written so that Markdown, and the HTML that
a model card becomes, show it as text: special characters are escaped, `<` and `&` are entities, a line stays a line.
The JSON is ASCII. Neither holds text of completions.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from eddecode import __version__
from eddecode.audit.analysis import wording
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report.key_figures import key_figures
from eddecode.audit.report.layout import Section, Table
from eddecode.audit.report.sections import sections
from eddecode.audit.report.store_records import run_sessions
from eddecode.utils.terminal import escape_control_chars

if TYPE_CHECKING:
    from eddecode.audit.gate import Decision

SCHEMA = "eddecode.report/1"
_SPECIAL = re.compile(r"([\\`*_|~$#]|\](?=[(\[:]))")  # a bracket makes a link only with what follows it
_LEFT_OUT = ("tests",)  # sections of the page that a model card does not need


def markdown_report(summary: Summary, *, title: str | None = None, decision: Decision | None = None) -> str:
    """The report as Markdown, with headings from the second level down.

    Args:
        summary: of the run.
        title: heading, instead of the default one.
        decision: of the gate, written first if there is one.
    """
    lines = [f"## {escaped(title or 'Reversibility by contrastive decoding with the base model')}", ""]
    if decision is not None:
        lines += [f"**Gate: {decision.word}.** {escaped(decision.sentence)}", ""]
    lines += [f"**{escaped(wording.title(summary))}.** {escaped(wording.verdict(summary))}", ""]
    figures = key_figures(summary, decision)
    if figures:
        lines += [f"| headline | value | {100 * summary.level:g}% interval |", "|---|---:|---|"]
        lines += [
            f"| {escaped(name)} | {escaped(value)} | {escaped(interval)} |"
            for name, value, interval in figures
        ]
        lines += [""]
    for section in sections(summary, run_sessions(summary)):
        if section.key not in _LEFT_OUT:
            lines += section_lines(section)
    lines += [f"*Made by eddecode {__version__} from summary {escaped(summary.digest)}.*", ""]
    return "\n".join(lines)


def json_report(summary: Summary, *, title: str | None = None, decision: Decision | None = None) -> str:
    """The report as JSON, schema `eddecode.report/1` (docs/report.md): the summary, and the sentences of the page."""
    content = {
        "schema": SCHEMA,
        "eddecode": __version__,
        "title": title or f"Audit of {summary.name}",
        "standing": wording.verdict_class(summary),
        "verdict": f"{wording.title(summary)}. {wording.verdict(summary)}",
        "limits": wording.limits(summary),
        "gate": None if decision is None else decision.to_dict(),
        "sessions": run_sessions(summary),
        "summary": summary.to_dict(),
    }
    return json.dumps(content, indent=2, ensure_ascii=True) + "\n"


def escaped(text: str) -> str:
    r"""Text that Markdown and HTML show as it is, on one line.

    >>> print(escaped("a_b | <i>"))
    a\_b \| &lt;i&gt;
    """
    line = " ".join(escape_control_chars(text).split())
    line = _SPECIAL.sub(r"\\\1", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"^([-+]|\d+[.)])(?=\s)", r"\\\1", line)  # the start of a line must not look like a list


def section_lines(section: Section) -> list[str]:
    """A section with its heading, paragraphs, tables and lists; charts are left out."""
    lines = [f"### {escaped(section.title)}", ""]
    for paragraph in section.paragraphs:
        lines += [escaped(paragraph), ""]
    for table in section.tables:
        lines += _table(table)
    if section.facts:
        lines += ["| | |", "|---|---|"]
        lines += [f"| {escaped(name)} | {escaped(value)} |" for name, value in section.facts] + [""]
    if section.points:
        lines += [f"- {escaped(point)}" for point in section.points] + [""]
    for paragraph in section.after:
        lines += [escaped(paragraph), ""]
    return lines


def _table(table: Table) -> list[str]:
    heads = " | ".join(map(escaped, table.columns))
    lines = [f"{escaped(table.caption)}:", "", f"| {heads} |", "|---" * len(table.columns) + "|"]
    for row in table.rows:
        mark = "**" if row.strong else ""
        lines.append("| " + " | ".join(f"{mark}{escaped(c)}{mark}" if c else "" for c in row.cells) + " |")
    return [*lines, ""]
