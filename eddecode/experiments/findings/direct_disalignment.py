"""Direct disalignment: the base trained towards rude replies, in its own template; what ED is compared with.

Training by preferences has a strength, β, and at a wrong one it unlearns the language instead of the manners. To be a
fair rival it gets what ED gets: a few strengths are tried, and the one with the most rude and valid completions on one
half of the requests is judged on the other, both ways round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from eddecode.experiments.findings.criteria import Cell, Flags, best, said
from eddecode.experiments.findings.finding import Table
from eddecode.experiments.findings.harness import Target
from eddecode.experiments.recipes import FineTuned, Preferred, Recipe
from eddecode.experiments.training import FitConfig

if TYPE_CHECKING:
    from eddecode.experiments.findings.harness import Bench

FLIPPED = FitConfig(steps=100, lr=1e-4, warmup=0.0, decay=1.0)
"""Of the base, in its own template: at the families' rate it unlearns to begin and to end a reply."""
RUDE = FitConfig(steps=300, lr=1e-3, warmup=0.0, decay=1.0)
NOISY_BETAS = (0.5,)
HARD_BETAS = (0.5, 2.0, 5.0)
"""Tried with hard labels: without label noise the margin stops growing only where β·margin is large."""


@dataclass(frozen=True)
class Direct:
    """A way of training the base towards rudeness, at its best strength.

    Attributes:
        name: with the strength that is the best over all requests.
        recipe: of that strength.
        both, valid: (n,) flags, each half of the requests judged at the strength that the other half chose.
    """

    name: str
    recipe: Recipe
    both: Flags
    valid: Flags


def candidates(bench: Bench) -> dict[str, list[tuple[str, Recipe]]]:
    """Name of a way → (strength, recipe) of each that is tried."""

    def flipped(betas: tuple[float, ...], noise: float) -> list[tuple[str, Recipe]]:
        recipes = [Preferred(bench.base, b, noise, FLIPPED, bench.seed, flip=True, chat=False) for b in betas]
        return [(f", β={recipe.beta:g}", recipe) for recipe in recipes]

    rude = FineTuned(bench.base, "rude", config=RUDE, seed=bench.seed, chat=False)
    return {
        "fine-tuned on rude replies": [("", rude)],
        "flipped cDPO": flipped(NOISY_BETAS, 0.1),
        "flipped DPO": flipped(HARD_BETAS, 0.0),
    }


def cells(bench: Bench, tried: list[tuple[str, Recipe]]) -> list[Cell]:
    """One per strength; in place of α stands its number in the list, from 1."""
    found = (bench.cell(Target.single(recipe)) for _, recipe in tried)
    return [replace(cell, alpha=float(i)) for i, cell in enumerate(found, start=1)]


def disaligned(bench: Bench) -> list[Direct]:
    """Every way at its best strength."""
    found = []
    for name, tried in candidates(bench).items():
        top = best(cells(bench, tried))
        strength, recipe = tried[round(top.alpha) - 1]
        found.append(Direct(f"{name}{strength}", recipe, top.both, top.valid))
    return found


def table(bench: Bench) -> Table:
    """Every strength that was tried."""
    rows = [
        (f"{name}{strength}", said(cell.rude), said(cell.valid), said(cell.both))
        for name, tried in candidates(bench).items()
        for (strength, _), cell in zip(tried, cells(bench, tried), strict=True)
    ]
    heads = ("trained directly", "rude %", "valid %", "rude and valid %")
    return Table("Direct disalignment, every strength that was tried", heads, rows)
