"""The results as one table of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def table(results: Mapping[str, Any]) -> str:
    """One line per figure: stage, name, value."""
    lines = []
    for stage, result in results.items():
        state = "ok" if result.get("ok") else f"FAILED: {result.get('error', 'not as promised')}"
        lines.append(f"{stage:<13} {state} ({result.get('seconds', 0):.1f} s)")
        found = result.get("found") or {}
        lines += [f"    {name:<58} {value}" for name, value in _flat(found)]
    return "\n".join(lines) + "\n"


def _flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} · ")
        else:
            yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)
