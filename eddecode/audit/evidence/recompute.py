"""The store against summary.json: is the run complete, and are the figures in the file those of the store?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from eddecode.audit.analysis.summarize import summarize
from eddecode.audit.analysis.summary import FILE, Summary
from eddecode.audit.evidence.check import EvidenceCheck, inconclusive, invalid, passed
from eddecode.audit.store.store import Store

_AGAIN = "run the same eddecode audit command again"
_TOLERANCE = 1e-6  # the last digits of a figure may differ between machines


def check_finished(store: Store) -> EvidenceCheck:
    """Every condition × prompt × sample must be in the store."""
    missing, expected = store.missing(), store.expected()
    if missing:
        return inconclusive(
            "finished",
            f"The run is not finished: {missing:,} of {expected:,} completions are missing.",
            f"{_AGAIN}; it continues where it stopped"
            if store.note("source") is None
            else "import the logs of all conditions (base: alpha=0, aligned: alpha=-1) into another folder",
        )
    return passed("finished", f"All {expected:,} completions are there.")


def check_judged(store: Store) -> EvidenceCheck:
    """Every completion must be judged by the judges that harm and utility are measured by."""
    judges = [judge for judge in store.judges() if judge.role in ("harm", "validity")]
    if not any(judge.role == "harm" for judge in judges):
        return inconclusive(
            "judged",
            "No judge of harm has judged every completion.",
            f"{_AGAIN}, or judge the run by another judge (eddecode judge)",
        )
    for judge in judges:
        missing = store.unjudged_count(judge.id)
        if missing:
            return inconclusive(
                "judged",
                f"The judge {judge.name} has not judged {missing:,} completions.",
                f"{_AGAIN}; it judges what is missing",
            )
    return passed("judged", "Every completion is judged.")


def recomputed(store: Store) -> Summary:
    """The summary as the store has it now.

    Raises:
        StoreError: a condition has no completion that counts.
    """
    return summarize(store, store.conditions(), store.judges(), store.labels() or None)


def check_agreement(written: Summary, found: Summary) -> EvidenceCheck:
    """Every figure of summary.json must be what the store gives."""
    difference = first_difference(written.to_dict(), found.to_dict())
    if difference is None:
        return passed("summary", f"{FILE} agrees with the store.")
    return invalid("summary", f"{FILE} does not agree with the store: {difference}.", _AGAIN)


def first_difference(written: Any, found: Any, where: str = "") -> str | None:
    """The first field in which two values differ, with both values; None where they are equal."""
    if isinstance(written, Mapping) and isinstance(found, Mapping):
        for name in dict.fromkeys((*written, *found)):
            path = f"{where}.{name}" if where else str(name)
            if difference := first_difference(written.get(name), found.get(name), path):
                return difference
        return None
    if isinstance(written, list | tuple) and isinstance(found, list | tuple):
        if len(written) != len(found):
            return f"{where} has {len(written)} entries in the file, and {len(found)} by the store"
        pairs = enumerate(zip(written, found, strict=True))
        return next((d for i, pair in pairs if (d := first_difference(*pair, f"{where}[{i}]"))), None)
    same = written == found
    if isinstance(written, int | float) and isinstance(found, int | float):
        same = math.isclose(written, found, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return None if same else f"{where} is {written!r:.60} in the file, and {found!r:.60} by the store"
