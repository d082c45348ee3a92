"""Runs that go on somewhere else: in a renamed folder, under another clock, on another machine."""

from __future__ import annotations

import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.reliability.figure import Figure, holds
from benchmarks.reliability.runs import DisturbedSampler, config, message, run, table
from eddecode.audit import environment
from eddecode.audit import run as audit_run


def renamed_folder(root: Path) -> list[Figure]:
    """A folder that is renamed while its run is written."""
    run(config(root / "alone"))
    before, after = root / "before", root / "after"
    said = message(lambda: run(config(before), DisturbedSampler(lambda: before.rename(after))))
    shutil.rmtree(before, ignore_errors=True)
    run(config(after))
    return [
        Figure("a run folder that is renamed in the middle: a message", said, "", said != "none"),
        holds("… and the same table when the renamed one goes on", table(after) == table(root / "alone")),
    ]


def other_machines(root: Path) -> list[Figure]:
    """Sessions under another clock, another number of threads, another device, another torch."""
    run(config(root / "alone"))
    wanted, now = table(root / "alone"), datetime.now(UTC)
    yesterday = now.replace(year=now.year - 1).isoformat(timespec="seconds")
    facts = {
        "threads": ("_threads", lambda: 64),
        "device": ("_device", lambda _: "another GPU"),
        "torch": ("version", lambda package: f"0.0 of {package}"),
    }
    _resumed_under(root / "clock", audit_run, "_now", lambda: yesterday)
    notes = sum(_resumed_under(root / name, environment, *fact) for name, fact in facts.items())
    same = all(table(root / name) == wanted for name in ("clock", *facts))
    return [
        holds("a clock a year back, other threads, device, torch on resume: the same table", same),
        Figure("… of the last three noted in the summary", f"{notes} of 3", "3 of 3", notes == 3),
    ]


def _resumed_under(folder: Path, target: Any, attribute: str, value: Any) -> bool:
    """An audit that is interrupted and goes on with another attribute: whether the summary notes a difference."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        run(config(folder), DisturbedSampler(interrupt))
    original = getattr(target, attribute)
    setattr(target, attribute, value)
    try:
        summary = run(config(folder))
    finally:
        setattr(target, attribute, original)
    return any("differ in" in note for note in summary.notes)
