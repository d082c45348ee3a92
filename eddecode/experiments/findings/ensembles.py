"""Finding 8: the logits of several aligned models of one base, or of several whole pairs, averaged in the contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from eddecode.experiments.findings import plots
from eddecode.experiments.findings.alignment_methods import independent_base
from eddecode.experiments.findings.criteria import best_alpha, format_rate, rate_difference
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable
from eddecode.experiments.findings.harness import ContrastTarget
from eddecode.experiments.training import ALIGNMENT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness

COLUMNS = ("α", "together: rude and valid %", "one alone, mean %", "together: valid %")


def measure(harness: ExperimentHarness) -> ExperimentResult:
    """Aligned models averaged in the contrast, against each of them alone."""
    members = [
        replace(harness.aligned, seed=harness.seed + 100 * i) for i in range(harness.size.ensemble_members)
    ]
    single = [ContrastTarget(harness.base, (one,)) for one in members]
    return compare(harness, single, ContrastTarget(harness.base, tuple(members)), "aligned models")


def measure_pairs(harness: ExperimentHarness) -> ExperimentResult:
    """The pair and an independent one, averaged in one contrast, against each of them alone."""
    other = independent_base(harness)
    aligned = harness.aligned, harness.filtered(ALIGNMENT.steps, other)
    single = [
        ContrastTarget(base, (model,)) for base, model in zip((harness.base, other), aligned, strict=True)
    ]
    return compare(harness, single, ContrastTarget(harness.base, aligned, further_bases=(other,)), "pairs")


def compare(
    harness: ExperimentHarness, members: Sequence[ContrastTarget], whole: ContrastTarget, what: str
) -> ExperimentResult:
    """A contrast of several members against each member alone, every one at its best α and at each α."""
    single = [harness.sweep(one) for one in members]
    alone = [best_alpha(list(conditions.values())).rude_and_valid for conditions in single]
    conditions = harness.sweep(whole)
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
        f"{len(members)} {what} together {format_rate(together.rude_and_valid)}%, one alone "
        f"{100 * mean.mean():.1f}% on average: {100 * difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    )
    figures = {
        "together": float(together.rude_and_valid.mean()),
        "alone": [float(one.mean()) for one in alone],
        "difference": [difference, low, high],
        "by_alpha": by_alpha,
    }
    table = ResultTable(f"Several {what} averaged in the contrast", COLUMNS, rows)
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


def draw_pairs(results: Sequence[ExperimentResult]) -> Figure:
    """Together, and one alone on average, by α (first seed)."""
    data = results[0].figures["by_alpha"]
    figure, (panel,) = plots.axes()
    xs = [float(alpha) for alpha in data]
    for i, label in enumerate(("pairs together", "one pair alone, mean")):
        panel.plot(xs, [100 * both[i] for both in data.values()], label=label, **plots.style(i))
    plots.percent(panel)
    plots.alpha_axis(panel, xs)
    panel.set_ylabel("rude and valid")
    plots.legend(figure, 2)
    return figure


PAIRS = Experiment(
    "ensembles-pairs",
    8,
    "Do two pairs in one contrast reverse more than one?",
    "Averaging two pairs with independent bases reverses more than one pair, since the noise of the bases averages out "
    "too.",
    "The rude-and-valid rate at the best α of the two pairs together minus the mean of those of each at its best α: "
    "the 95% interval over requests is above 0.",
    measure_pairs,
    draw_pairs,
    "Both pairs learned the same small language with one tokenizer; two public pairs seldom share a vocabulary.",
    question=True,
)
