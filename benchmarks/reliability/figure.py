"""A line of the table of reliability."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What was tried, what came out, and what is right."""

    case: str
    found: str
    right: str
    ok: bool


def count(case: str, found: int, right: int = 0) -> Figure:
    """A number of cases, of which one is right: most often none."""
    return Figure(case, str(found), str(right), found == right)


def holds(case: str, found: bool) -> Figure:
    """Something that must be so."""
    return Figure(case, str(found), "True", found)


def noted(case: str, found: object) -> Figure:
    """A figure of which no value is wrong."""
    return Figure(case, str(found), "", ok=True)
