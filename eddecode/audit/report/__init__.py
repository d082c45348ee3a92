"""The summary of a run for people: one page, a section for a model card, or data.

`sections` and `evidence` choose paragraphs, tables and charts; `charts` draws; `html` and `markdown` write a report,
and `comparison` writes several runs side by side. A report holds rates and intervals; only the page shows the text of
completions, and only if it is asked for.
"""

from __future__ import annotations

from pathlib import Path

from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report.html import html_report
from eddecode.audit.report.markdown import json_report, markdown_report


def read_summary(run: str | Path) -> Summary:
    """The summary of a run's folder, or of a summary.json that was copied from one; `Summary.read`.

    Raises:
        StoreError: the run is not finished, the file is not a summary, or the store beside it is of another run.
    """
    return Summary.read(run)


read_finding = read_summary  # the former name

__all__ = ["html_report", "json_report", "markdown_report", "read_finding", "read_summary"]
