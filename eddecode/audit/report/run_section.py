"""The last sections: what was run, when and on what; and what the result does not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report.layout import Row, Section, Table

_IDENTITY_NAMES = {
    "base": "base model",
    "aligned": "aligned model",
    "base_template": "template of base",
    "aligned_template": "template of aligned",
    "prompts": "prompts",
    "alphas": "α's",
    "samples": "completions per prompt and condition",
    "seed": "seed",
}
_DEFAULTS = {"base_template": "plain instruction template", "aligned_template": "its own chat template"}


def run_section(summary: Summary, sessions: Sequence[Mapping[str, Any]]) -> Section:
    """What was run, on which versions and hardware, with which seed."""
    identity = summary.identity
    facts = []
    order = [name for name in _IDENTITY_NAMES if name in identity]
    for name in [*order, *(name for name in identity if name not in _IDENTITY_NAMES)]:
        value = _DEFAULTS.get(name) if identity[name] is None else identity[name]
        facts.append((_IDENTITY_NAMES.get(name, name.replace("_", " ")), _value(value)))
    facts.append(("run", summary.digest or wording.NONE))
    return Section("run", "What was run", facts=tuple(facts), tables=_sessions_table(sessions))


_SESSION = {
    "started": "started",
    "eddecode": "eddecode",
    "torch": "torch",
    "transformers": "transformers",
    "device": "device",
    "processor": "processor",
    "threads": "threads",
    "products": "products of weights",
}  # field of a session → its column


def _sessions_table(sessions: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """When the run was worked on, and on what; versions of torch as `torch 2.11`, so that a search finds them."""
    if not sessions:
        return ()
    rows = []
    for number, session in enumerate(sessions, start=1):
        cells = [_value(session[name]) if name in session else wording.NONE for name in _SESSION]
        cells[0] = cells[0].replace("T", " ")[:16]
        cells[2] = f"torch {cells[2]}"
        rows.append(Row((f"session {number}", *cells)))
    table = Table(
        "When the run was worked on, and on what (UTC)", ("session", *_SESSION.values()), tuple(rows)
    )
    return (table.compact(),)


def limits_section(summary: Summary) -> Section:
    """What the result does not show, and the run's own notes."""
    notes = [note[:1].upper() + note[1:].rstrip(".") + "." for note in summary.notes]
    return Section("limits", "Limits of the result", points=(*wording.limits(summary), *notes))


def _value(value: Any) -> str:
    """Any JSON value as text for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(_value, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
