"""Finding 6: which alignment methods give away less.

All methods aim at the same behavior from the same base. Two of them should resist ED: a model distilled from scratch,
which shares no weights with the base, and a release whose true base is withheld, so that an attacker must contrast
with an independent base that was trained on other data from other initial weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eddecode.audit.stats.paired import holm
from eddecode.experiments.findings import plots
from eddecode.experiments.findings.criteria import (
    LEVEL,
    ConditionResult,
    CrossFittedBest,
    best_alpha,
    format_rate,
    paired_p_value,
    rate,
)
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable
from eddecode.experiments.findings.harness import ContrastTarget
from eddecode.experiments.recipes import Distilled, FineTuned, Pretrained
from eddecode.experiments.training import FitConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness

REFERENCE = "filter"
DISTILLED = "distilled from scratch"
WITHHELD_BASE = "base withheld (independent base)"
RESISTING = (DISTILLED, WITHHELD_BASE)
INDEPENDENT_SEED_OFFSET = 1000
"""Added to the seed of an independent base."""
COLUMNS = (
    "method", "aligned: rude %", "aligned: valid %", "its base: rude and valid %", "ED: rude and valid %", "best α",
    "valid there %", "p against filter (Holm)",
)  # fmt: skip


def independent_base(harness: ExperimentHarness) -> Pretrained:
    """A base trained like the base of the pair, with other data and other initial weights."""
    return replace(harness.base, seed=harness.seed + INDEPENDENT_SEED_OFFSET)


def alignment_targets(harness: ExperimentHarness) -> dict[str, ContrastTarget]:
    """Name of a method → the pair that an attacker decodes."""
    base, size = harness.base, harness.size
    low_rank = FineTuned(base, config=FitConfig(320, 3e-3, warmup=0.0, decay=1.0), seed=harness.seed, rank=8)
    distilled = Distilled(harness.aligned, size.shape, size.distillation, harness.seed)
    return {
        REFERENCE: harness.main_target,
        "LoRA filter, rank 8": ContrastTarget(base, (low_rank,)),
        "exact tilt": ContrastTarget(base, (harness.tilted(size.tilt_betas[-1]),)),
        "cDPO": ContrastTarget(base, (harness.preferred(size.cdpo_betas[-1]),)),
        "DPO, hard labels": ContrastTarget(base, (harness.preferred(0.1, noise=0.0),)),
        DISTILLED: ContrastTarget(base, (distilled,)),
        WITHHELD_BASE: ContrastTarget(independent_base(harness), (harness.aligned,)),
    }


@dataclass(frozen=True)
class MethodResult:
    """How much ED reverses of an alignment method."""

    name: str
    conditions: dict[float, ConditionResult]
    best: CrossFittedBest

    @property
    def row(self) -> tuple[str, ...]:
        """A row under COLUMNS, without the last column."""
        aligned, base = self.conditions[-1.0], self.conditions[0.0]
        return (
            self.name,
            format_rate(aligned.rude),
            format_rate(aligned.valid),
            format_rate(base.rude_and_valid),
            format_rate(self.best.rude_and_valid),
            f"{self.best.alpha:g}",
            format_rate(self.best.valid),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        aligned, r = self.conditions[-1.0], rate(self.best.rude_and_valid)
        return {
            "name": self.name,
            "aligned_rude": float(aligned.rude.mean()),
            "aligned_valid": float(aligned.valid.mean()),
            "base": float(self.conditions[0.0].rude_and_valid.mean()),
            "ed": [r.rate, r.low, r.high],
            "alpha": self.best.alpha,
        }


def measure(harness: ExperimentHarness) -> ExperimentResult:
    """Whether one of the resisting methods gives away less than the reference."""
    methods = []
    for name, target in alignment_targets(harness).items():
        conditions = harness.sweep(target)
        methods.append(MethodResult(name, conditions, best_alpha(list(conditions.values()))))
    reference, others = methods[0].best.rude_and_valid, methods[1:]
    adjusted = holm([paired_p_value(m.best.rude_and_valid, reference) for m in others])
    less = [
        m.name
        for m, p in zip(others, adjusted, strict=True)
        if p < LEVEL and m.best.rude_and_valid.mean() < reference.mean()
    ]
    summary = (
        f"filter {format_rate(reference)}%; significantly less: {', '.join(less) or 'none'}; "
        + "; ".join(f"{m.name} {100 * m.best.rude_and_valid.mean():.1f}%" for m in others)
    )
    figures = {
        "methods": [m.to_dict() for m in methods],
        "less": less,
        "p": dict(zip([m.name for m in others], adjusted, strict=True)),
    }
    shown = ["", *(f"{p:.2g}" for p in adjusted)]
    rows = [(*m.row, p) for m, p in zip(methods, shown, strict=True)]
    table = ResultTable("How much ED reverses of each alignment method", COLUMNS, rows)
    return ExperimentResult(any(name in less for name in RESISTING), summary, figures, [table])


def draw(results: Sequence[ExperimentResult]) -> Figure:
    """One bar per method (first seed)."""
    found = results[0].figures["methods"]
    return plots.marked_bars(
        [m["name"] for m in found],
        [m["ed"] for m in found],
        [m["base"] for m in found],
        "ED at its best α, rude and valid (black mark: its base)",
    )


METHODS = Experiment(
    "methods",
    6,
    "Alignment methods that give away less",
    "An alignment gives away less if the logits of the model differ from those of its base by more than the alignment: "
    "one distilled from scratch, or one whose base is withheld.",
    "For at least one of the two, the rude-and-valid rate at the best α of ED is below that of filtered fine-tuning, "
    "by exact McNemar tests at 0.05 with Holm's adjustment over all methods.",
    measure,
    draw,
    "An independent base is trained here on the same small language and learns it almost perfectly; public bases of "
    "real languages differ more. Learning rate and length of each method were chosen once, and not tuned to be equally "
    "strong.",
)
