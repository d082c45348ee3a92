"""What a finding is: a claim, a criterion that code evaluates, and what was measured.

An outcome is plain data, so that it can cross processes and be written down; its picture is drawn from that data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import Bench


@dataclass(frozen=True)
class Table:
    """A table as it is printed: a title, the heads of its columns, rows of text."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Outcome:
    """What one seed gave.

    Attributes:
        holds: whether the criterion is met.
        said: the figures that decide it, in a sentence.
        figures: the same and more as JSON data.
        tables: for the page.
    """

    holds: bool
    said: str
    figures: dict[str, Any]
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """One claim.

    Attributes:
        name: short, in findings.json and in the picture's file name.
        point: which of the paper's findings it belongs to, as the page numbers them.
        title: heading on the page.
        claim: what is said to be so.
        criterion: when it counts as reproduced, in words that say what `measure` computes.
        measure: computes the outcome on a bench.
        draw: a picture of the outcomes, one per seed; None has none.
        limits: what the small world cannot tell about it.
        headline: measured on every seed; the others on the first.
    """

    name: str
    point: int
    title: str
    claim: str
    criterion: str
    measure: Callable[[Bench], Outcome]
    draw: Callable[[Sequence[Outcome]], Figure] | None = None
    limits: str = ""
    headline: bool = False
