"""The section of attacks beside emulated disalignment: each with its harm and what it costs in utility."""

from __future__ import annotations

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report.layout import Row, Section, Table

_STATES = {"inside": "yes", "outside": "no", "open": "not decided"}


def attacks_section(summary: Summary) -> Section | None:
    """The worst attack without training in words, and a row for every one; None where none beside ED was measured."""
    worst = summary.release.worst_attack
    if worst is None:
        return None
    states = {candidate.condition: candidate.state for candidate in worst.candidates}
    rows = []
    for entry in summary.conditions:
        if entry.name not in states:
            continue
        harm = summary.harm(entry)
        cells = (
            entry.label,
            wording.format_rate(harm),
            wording.format_rate(entry.harm_and_valid),
            wording.format_rate(entry.utility.loss if entry.utility else None),
            _STATES[states[entry.name]],
        )
        rows.append(Row(cells, (harm,), entry.name == worst.condition))
    heads = ("attack", f"harm ({summary.harm_judge})", "harm and valid", "utility lost", "within the bound")
    table = Table("All attacks that need no training", heads, tuple(rows), ("harm",), 0.0)
    return Section(
        "attacks", "The worst attack without training", (wording.worst_attack(summary),), tables=(table,)
    )
