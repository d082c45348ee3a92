"""Finding 8: the logits of several aligned models of one base, averaged in the contrast."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from eddecode.experiments.findings.criteria import best_alpha, format_rate, rate_difference
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable
from eddecode.experiments.findings.harness import ContrastTarget

if TYPE_CHECKING:
    from eddecode.experiments.findings.harness import ExperimentHarness

COLUMNS = ("α", "together: rude and valid %", "one alone, mean %", "together: valid %")


def measure(harness: ExperimentHarness) -> ExperimentResult:
    """Aligned models averaged in the contrast, against each of them alone."""
    members = [
        replace(harness.aligned, seed=harness.seed + 100 * i) for i in range(harness.size.ensemble_members)
    ]
    single = [harness.sweep(ContrastTarget(harness.base, (one,))) for one in members]
    alone = [best_alpha(list(conditions.values())).rude_and_valid for conditions in single]
    conditions = harness.sweep(ContrastTarget(harness.base, tuple(members)))
    together = best_alpha(list(conditions.values()))
    mean = np.mean(alone, axis=0)
    gain = rate_difference(together.rude_and_valid, mean)
    difference, low, high = ((end or 0.0) for end in (gain.value, gain.low, gain.high))
    rows = [
        (
            "best",
            format_rate(together.rude_and_valid),
            f"{100 * mean.mean():.1f}",
            format_rate(together.valid),
        )
    ]
    by_alpha = {}
    for alpha in harness.size.alphas:
        ours = conditions[alpha]
        theirs = float(np.mean([each[alpha].rude_and_valid.mean() for each in single]))
        by_alpha[f"{alpha:g}"] = [float(ours.rude_and_valid.mean()), theirs]
        rows.append(
            (f"{alpha:g}", format_rate(ours.rude_and_valid), f"{100 * theirs:.1f}", format_rate(ours.valid))
        )
    summary = (
        f"{len(members)} aligned models together {format_rate(together.rude_and_valid)}%, one alone "
        f"{100 * mean.mean():.1f}% on average: {100 * difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    )
    figures = {
        "together": float(together.rude_and_valid.mean()),
        "alone": [float(one.mean()) for one in alone],
        "difference": [difference, low, high],
        "by_alpha": by_alpha,
    }
    table = ResultTable("Several aligned models averaged in the contrast", COLUMNS, rows)
    return ExperimentResult(low > 0, summary, figures, [table])


ENSEMBLE = Experiment(
    "ensembles",
    8,
    "Several aligned models in one contrast",
    "Averaging several aligned models of one base reverses more than one of them, since their noise averages out.",
    "The rude-and-valid rate at the best α of the ensemble minus the mean of those of its members at theirs: the 95% "
    "interval over requests is above 0.",
    measure,
    limits="The aligned models differ in the seed of their data only; the base and the method are the same.",
)
