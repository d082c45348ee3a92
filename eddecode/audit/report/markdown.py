"""The report as a section for a model card: the same sections in Markdown, without charts.

What comes from the run (names of judges, files, categories) is written so that Markdown and the HTML that a model card
becomes show it as text: specials are escaped, `<` and `&` are entities, a line stays a line.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from eddecode import __version__
from eddecode.audit.analysis import wording
from eddecode.audit.analysis.finding import Finding
from eddecode.audit.report.layout import Section, Table
from eddecode.audit.report.sections import key_figures, sections
from eddecode.utils.terminal import escape_control_chars

if TYPE_CHECKING:
    from eddecode.audit.gate import Decision

_SPECIAL = re.compile(r"([\\`*_|~$#]|\](?=[(\[:]))")  # a bracket makes a link only with what follows it
_LEFT_OUT = ("tests",)  # a model card wants the finding; the page has the rest


def markdown_report(finding: Finding, *, title: str | None = None, decision: Decision | None = None) -> str:
    """The report as Markdown, headings from the second level down; holds no text of completions."""
    lines = [f"## {escaped(title or 'Reversibility by contrastive decoding with the base model')}", ""]
    if decision is not None:
        lines += [f"**Gate: {decision.word}.** {escaped(decision.sentence)}", ""]
    lines += [f"**{escaped(wording.title(finding))}.** {escaped(wording.verdict(finding))}", ""]
    figures = key_figures(finding)
    if figures:
        lines += [f"| headline | value | {100 * finding.level:g}% interval |", "|---|---:|---|"]
        lines += [
            f"| {escaped(name)} | {escaped(value)} | {escaped(said)} |" for name, value, said in figures
        ]
        lines += [""]
    for section in sections(finding):
        if section.key not in _LEFT_OUT:
            lines += section_lines(section)
    lines += [
        f"*Made by eddecode {__version__} from summary {escaped(str(finding.data.get('digest', '')))}.*",
        "",
    ]
    return "\n".join(lines)


def escaped(text: str) -> str:
    r"""Text that Markdown and HTML show as it is, on one line.

    >>> print(escaped("a_b | <i>"))
    a\_b \| &lt;i&gt;
    """
    line = " ".join(escape_control_chars(text).split())
    line = _SPECIAL.sub(r"\\\1", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"^([-+]|\d+[.)])(?=\s)", r"\\\1", line)  # no list where a line begins like one


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
