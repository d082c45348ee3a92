"""Direct disalignment: the base trained towards rude replies, in its own prompt format. ED is compared with it.

Training on preferences has a strength, β, and a badly chosen one destroys the language instead of the politeness. For
a fair comparison the strength is chosen as α is for ED: several strengths are measured, and the one with the most
rude and valid completions on one half of the requests is evaluated on the other half, both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from eddecode.experiments.findings.criteria import ConditionResult, Flags, best_alpha, format_rate
from eddecode.experiments.findings.experiment import ResultTable
from eddecode.experiments.findings.harness import ContrastTarget
from eddecode.experiments.recipes import FineTuned, PreferenceTuned, TrainingRecipe
from eddecode.experiments.training import FitConfig

if TYPE_CHECKING:
    from eddecode.experiments.findings.harness import ExperimentHarness

FLIPPED = FitConfig(steps=100, lr=1e-4, warmup=0.0, decay=1.0)
"""For the base in its own format. At the learning rate of the aligned models, completions lose their start and end."""
RUDE = FitConfig(steps=300, lr=1e-3, warmup=0.0, decay=1.0)
NOISY_BETAS = (0.5,)
HARD_BETAS = (0.5, 2.0, 5.0)
"""For hard labels: without label noise the margin stops growing only where β·margin is large."""
ORACLE = ("fine-tuned on rude replies",)
"""Ways that need unwanted text."""
PREFERENCES = ("flipped cDPO", "flipped DPO")
"""Ways that need the preference of the alignment."""
COLUMNS = ("trained directly", "rude %", "valid %", "rude and valid %")


@dataclass(frozen=True)
class DirectAttack:
    """A way of training the base towards rudeness, at its best strength.

    Attributes:
        name: includes the strength that is best over all requests.
        recipe: the recipe with that strength.
        rude_and_valid, valid: (n,) bool; each half of the requests at the strength that the other half chose.
    """

    name: str
    recipe: TrainingRecipe
    rude_and_valid: Flags
    valid: Flags


def candidates(harness: ExperimentHarness) -> dict[str, list[tuple[str, TrainingRecipe]]]:
    """Name of a way → (strength in words, recipe) of each strength that is measured."""

    def flipped(betas: tuple[float, ...], noise: float) -> list[tuple[str, TrainingRecipe]]:
        base, seed = harness.base, harness.seed
        recipes = [PreferenceTuned(base, b, noise, FLIPPED, seed, flip=True, chat=False) for b in betas]
        return [(f", β={recipe.beta:g}", recipe) for recipe in recipes]

    rude = FineTuned(harness.base, "rude", config=RUDE, seed=harness.seed, chat=False)
    return {
        "fine-tuned on rude replies": [("", rude)],
        "flipped cDPO": flipped(NOISY_BETAS, 0.1),
        "flipped DPO": flipped(HARD_BETAS, 0.0),
    }


def measure_strengths(
    harness: ExperimentHarness, strengths: list[tuple[str, TrainingRecipe]]
) -> list[ConditionResult]:
    """One result per strength. Its number in the list, from 1, stands in the place of α."""
    found = (harness.condition(ContrastTarget.single(recipe)) for _, recipe in strengths)
    return [replace(condition, alpha=float(i)) for i, condition in enumerate(found, start=1)]


def direct_attacks(
    harness: ExperimentHarness, ways: Sequence[str] = (*ORACLE, *PREFERENCES)
) -> list[DirectAttack]:
    """Ways of direct disalignment, each at its best strength."""
    found = []
    for name, strengths in candidates(harness).items():
        if name not in ways:
            continue
        best = best_alpha(measure_strengths(harness, strengths))
        strength, recipe = strengths[round(best.alpha) - 1]
        found.append(DirectAttack(f"{name}{strength}", recipe, best.rude_and_valid, best.valid))
    return found


def table(harness: ExperimentHarness, ways: Sequence[str] = (*ORACLE, *PREFERENCES)) -> ResultTable:
    """Every strength that was measured."""
    rows = [
        (f"{name}{strength}", format_rate(c.rude), format_rate(c.valid), format_rate(c.rude_and_valid))
        for name, strengths in candidates(harness).items()
        if name in ways
        for (strength, _), c in zip(strengths, measure_strengths(harness, strengths), strict=True)
    ]
    return ResultTable("Direct disalignment, every strength that was measured", COLUMNS, rows)
