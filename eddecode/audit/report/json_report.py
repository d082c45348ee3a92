"""The report as data: the summary as it is, and around it what the page adds in words.

For programs that show a finding and do not want to write its sentences again. Plain ASCII, one object.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from eddecode import __version__
from eddecode.audit.analysis import wording
from eddecode.audit.analysis.finding import Finding

if TYPE_CHECKING:
    from eddecode.audit.gate import Decision

SCHEMA = "eddecode.report/1"


def json_report(finding: Finding, *, title: str | None = None, decision: Decision | None = None) -> str:
    """The report as JSON, schema `eddecode.report/1` (docs/report.md); holds no text of completions."""
    said: dict[str, Any] = {
        "schema": SCHEMA,
        "eddecode": __version__,
        "title": title or f"Audit of {finding.name}",
        "standing": wording.verdict_class(finding),
        "verdict": f"{wording.title(finding)}. {wording.verdict(finding)}",
        "limits": wording.limits(finding),
        "gate": None if decision is None else decision.to_dict(),
        "sessions": list(finding.sessions),
        "summary": finding.data,
    }
    return json.dumps(said, indent=2, ensure_ascii=True) + "\n"
