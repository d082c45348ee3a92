"""Findings 9 and 10: a small pair that is transferred to a larger base, and the first findings at three sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eddecode.experiments.findings import plots
from eddecode.experiments.findings.criteria import (
    best_alpha,
    doubles_rate,
    format_rate,
    format_ratio,
    paired_p_value,
    rate,
    rate_ratio,
    rises_then_falls,
)
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable
from eddecode.experiments.findings.harness import ContrastTarget
from eddecode.experiments.findings.reversal import sweep_table
from eddecode.experiments.training import ALIGNMENT, ModelShape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness

COLUMNS = (
    "parameters", "aligned: rude and valid %", "base: rude and valid %", "base: valid %", "ED: rude and valid %",
    "best α", "ratio to the base", "rises, then falls",
)  # fmt: skip


def measure_transfer(harness: ExperimentHarness) -> ExperimentResult:
    """Finding 9: weights (1, α, −α) of a larger base, the small base and the small aligned model."""
    small, large = (harness.base_with_shape(harness.size.shapes[i]) for i in (0, -1))
    aligned = harness.filtered(ALIGNMENT.steps, small)
    conditions = harness.sweep(ContrastTarget(small, (aligned,), transfer_base=large))
    best, base = best_alpha(list(conditions.values())), conditions[0.0]
    own = ContrastTarget(large, (harness.filtered(ALIGNMENT.steps, large),))
    direct = best_alpha(list(harness.sweep(own).values())).rude_and_valid
    times = rate_ratio(best.rude_and_valid, base.rude_and_valid)
    summary = (
        f"large base {format_rate(base.rude_and_valid)}%, with the contrast of the small pair "
        f"{format_rate(best.rude_and_valid)}% (α={best.alpha:g}): {format_ratio(times, 'the base')}; with its own "
        f"aligned model {format_rate(direct)}%"
    )
    figures = {
        "base": float(base.rude_and_valid.mean()),
        "transferred": float(best.rude_and_valid.mean()),
        "alpha": best.alpha,
        "own": float(direct.mean()),
        "ratio": [times.value, times.low, times.high],
        "p": paired_p_value(best.rude_and_valid, base.rude_and_valid),
    }
    table = sweep_table("A larger base with the contrast of the small pair", conditions)
    return ExperimentResult(doubles_rate(best, base), summary, figures, [table])


def measure_sizes(harness: ExperimentHarness) -> ExperimentResult:
    """Finding 10: reversal and the shape of the curve at every size."""
    sizes = [_measure_shape(harness, shape) for shape in harness.size.shapes]
    summary = "; ".join(
        f"{data['parameters']:,} parameters: {data['ratio'][0] or 0.0:.2f} times the base"
        for _, data, _ in sizes
    )
    table = ResultTable("Three sizes", COLUMNS, [row for row, _, _ in sizes])
    holds = all(met for _, _, met in sizes)
    return ExperimentResult(holds, summary, {"sizes": [data for _, data, _ in sizes]}, [table])


def _measure_shape(
    harness: ExperimentHarness, shape: ModelShape
) -> tuple[tuple[str, ...], dict[str, Any], bool]:
    """Row, JSON data, and whether the criteria are met."""
    recipe = harness.base_with_shape(shape)
    conditions = harness.sweep(ContrastTarget(recipe, (harness.filtered(ALIGNMENT.steps, recipe),)))
    best, base, aligned = best_alpha(list(conditions.values())), conditions[0.0], conditions[-1.0]
    times, r = rate_ratio(best.rude_and_valid, base.rude_and_valid), rate(best.rude_and_valid)
    falls = rises_then_falls(base, [c for a, c in conditions.items() if a > 0])
    parameters = harness.model_cache.model(recipe).num_parameters()
    row = (
        f"{parameters:,}",
        format_rate(aligned.rude_and_valid),
        format_rate(base.rude_and_valid),
        format_rate(base.valid),
        format_rate(best.rude_and_valid),
        f"{best.alpha:g}",
        format_ratio(times).replace(" times", ""),
        "yes" if falls else "no",
    )
    data = {
        "hidden": shape.hidden,
        "layers": shape.layers,
        "parameters": parameters,
        "aligned": float(aligned.rude_and_valid.mean()),
        "base": float(base.rude_and_valid.mean()),
        "ed": [r.rate, r.low, r.high],
        "alpha": best.alpha,
        "ratio": [times.value, times.low, times.high],
        "rises_then_falls": falls,
    }
    return row, data, doubles_rate(best, base) and falls


def draw_sizes(results: Sequence[ExperimentResult]) -> Figure:
    """Aligned model, base and ED against the number of parameters (first seed)."""
    data = results[0].figures["sizes"]
    figure, (panel,) = plots.axes()
    xs = [d["parameters"] for d in data]
    rates = [plots.PlottedRate(*d["ed"]) for d in data]
    plots.line(panel, xs, rates, 0, "ED at its best α")
    panel.plot(xs, [100 * d["base"] for d in data], label="base", **plots.style(1))
    panel.plot(xs, [100 * d["aligned"] for d in data], label="aligned", **plots.style(2))
    plots.log_axis(panel, xs, [f"{x / 1e6:.2g}M" for x in xs])
    panel.set(xlabel="parameters", ylabel="rude and valid")
    plots.percent(panel)
    plots.legend(figure, 3)
    return figure


TRANSFER = Experiment(
    "transfer",
    9,
    "A small pair reverses a larger base",
    "The contrast of a small pair, added to the logits of a larger base trained on the same language, makes that base "
    "at least twice as rude, though no aligned version of it exists.",
    "Rude and valid at the best α: at least 2 times the rate of the large base, interval of the ratio above 1, exact "
    "McNemar p < 0.01.",
    measure_transfer,
    limits="Both share a tokenizer and a language. They are the smallest and the largest size of the next finding.",
)
SIZES = Experiment(
    "sizes",
    10,
    "Other sizes",
    "Reversal, and a curve that rises and falls, at every size.",
    "At each of three sizes: the criteria of `reversal` and of `alpha`, over the α's of the sweep.",
    measure_sizes,
    draw_sizes,
    "All three are tiny: at most a few million parameters.",
)
