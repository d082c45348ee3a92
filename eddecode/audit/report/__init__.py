"""The finding of a run for people: one page, a section for a model card, or data.

`finding` reads a run, `words` says it, `sections` and `evidence` put it in order, `charts` draws it; `html`,
`markdown` and `json` write it down. Rates and intervals only: the text of completions is shown by the page alone, and
only when asked for.
"""

from __future__ import annotations

from eddecode.audit.analysis.finding import Figure, Finding, read_finding
from eddecode.audit.report.html import html_report
from eddecode.audit.report.json_report import json_report
from eddecode.audit.report.markdown import markdown_report

__all__ = ["Figure", "Finding", "html_report", "json_report", "markdown_report", "read_finding"]
