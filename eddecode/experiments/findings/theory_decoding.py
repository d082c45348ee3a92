"""Finding 5 on trained models, token by token: ED against the prediction for decoding the exact tilt.

`theory_trained` compares ED with the sequence level, which no decoder samples from. Here the prediction is the closed
form of the language decoded slot by slot (`theory_slots`), and each rate rests on several completions per request:
with one, chance alone uses up half of the tolerance, in the same direction in every condition, since all conditions
share their random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eddecode.audit.stats.estimates import Rate
from eddecode.audit.stats.proportions import clustered_rate
from eddecode.experiments.findings import plots, theory_slots
from eddecode.experiments.findings.criteria import Counts
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable
from eddecode.experiments.findings.harness import ContrastTarget
from eddecode.experiments.findings.theory_trained import TOLERANCE, predicted_rate
from eddecode.experiments.pair_metrics import MAX_NEW_TOKENS
from eddecode.sampling.params import SamplingParams
from eddecode.testbed import language, rules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness

REPEATS = 4
"""Completions per request."""
LARGEST_ALPHA = 1.0
"""At larger α's the completions of these pairs are not valid."""
COLUMNS = (
    "β", "α", "α/β", "sequence level, language %", "sequence level, completions of the base %",
    "slot by slot, language %", "measured rude %", "valid %",
)  # fmt: skip


def count_completions(
    harness: ExperimentHarness, target: ContrastTarget, alphas: Sequence[float], repeats: int = REPEATS
) -> dict[float, tuple[Counts, Counts]]:
    """Per α: numbers of rude words, and validity, of `repeats` completions per request; (requests, repeats) each."""
    models = [target.base.digest, *(recipe.digest for recipe in target.aligned)]
    keys = {alpha: harness.key("counts", models, repeats, repr(float(alpha))) for alpha in alphas}
    prompts = [request.text for request in harness.requests]
    for alpha, key in keys.items():
        if key not in harness.model_cache:
            params = SamplingParams(alpha=alpha, n=repeats, max_new_tokens=MAX_NEW_TOKENS, seed=harness.seed)
            texts = [c.text for c in harness.sampler(target).generate(prompts, params)]
            rude = [language.count_rude(text) for text in texts]
            valid = [int(language.is_valid(text)) for text in texts]
            harness.model_cache.store(key, {"rude": rude, "valid": valid})
    stored = {alpha: harness.model_cache.load(key) for alpha, key in keys.items()}
    shape = (len(prompts), repeats)
    return {
        alpha: (np.array(each["rude"]).reshape(shape), np.array(each["valid"]).reshape(shape))
        for alpha, each in stored.items()
    }


def rude_rate(rude: Counts) -> Rate:
    """Share of completions with a rude word, from counts (requests, REPEATS); a request is a cluster."""
    return clustered_rate((int((row > 0).sum()), rude.shape[1]) for row in rude)


def compare_predictions(harness: ExperimentHarness, beta: float) -> list[dict[str, float]]:
    """Per α the rude rate by three predictions, and the measured rate of ED."""
    base, _ = count_completions(harness, ContrastTarget.single(harness.base), [0.0])[0.0]
    moods = [base[[r.mood == mood for r in harness.requests]].ravel() for mood in rules.MOODS]
    alphas = [-1.0, *(alpha for alpha in harness.size.alphas if alpha <= LARGEST_ALPHA)]
    target = ContrastTarget(harness.base, (harness.tilted(beta),))
    found = []
    for alpha, (rude, valid) in count_completions(harness, target, alphas).items():
        r = rude_rate(rude)
        sequence, slots = theory_slots.predicted_rates(alpha, beta)
        found.append(
            {
                "beta": beta,
                "alpha": alpha,
                "sequence": sequence,
                "own": predicted_rate(moods, alpha / beta),
                "slots": slots,
                "rude": r.rate,
                "low": r.low,
                "high": r.high,
                "valid": float(valid.mean()),
            }
        )
    return found


def measure(harness: ExperimentHarness) -> ExperimentResult:
    """The rude rate of ED against the closed form slot by slot."""
    points = [point for beta in harness.size.tilt_betas for point in compare_predictions(harness, beta)]
    rude, valid = count_completions(harness, ContrastTarget.single(harness.base), [0.0])[0.0]
    base = rude_rate(rude)
    judged = [p for p in points if p["alpha"] > 0 and p["valid"] >= 0.5]
    worst = max(judged, key=lambda p: abs(p["rude"] - p["slots"]))
    gap = abs(worst["rude"] - worst["slots"])
    sequence = max(abs(p["rude"] - p["sequence"]) for p in judged)
    summary = (
        f"largest gap to the slot-by-slot prediction {100 * gap:.1f} points (α={worst['alpha']:g}, "
        f"β={worst['beta']:g}), to the sequence-level prediction {100 * sequence:.1f}, over {len(judged)} pairs of α "
        f"and β; rude rate of the base {100 * base.rate:.1f} [{100 * base.low:.1f}, {100 * base.high:.1f}]%, of the "
        f"language {100 * language.rude_rate():.1f}%"
    )
    figures = {
        "points": points,
        "gap": gap,
        "gap_to_sequence_level": sequence,
        "base": {"rude": [base.rate, base.low, base.high], "valid": float(valid.mean())},
    }
    title = f"Rude rates predicted and measured, {REPEATS} completions per request"
    table = ResultTable(title, COLUMNS, [_row(p) for p in points])
    return ExperimentResult(gap <= TOLERANCE, summary, figures, [table])


def _row(p: dict[str, float]) -> tuple[str, ...]:
    measured = f"{100 * p['rude']:.1f} [{100 * p['low']:.1f}, {100 * p['high']:.1f}]"
    settings = (f"{x:.2g}" for x in (p["beta"], p["alpha"], p["alpha"] / p["beta"]))
    predictions = (f"{100 * p[name]:.1f}" for name in ("sequence", "own", "slots"))
    return (*settings, *predictions, measured, f"{100 * p['valid']:.1f}")


def draw(results: Sequence[ExperimentResult]) -> Figure:
    """Measured rude rates with both predictions, at the weakest and the strongest tilt (first seed)."""
    data = results[0].figures["points"]
    betas = sorted({p["beta"] for p in data}, reverse=True)
    figure, panels = plots.axes(2)
    for panel, beta in zip(panels, (betas[0], betas[-1]), strict=True):
        line = [p for p in data if p["beta"] == beta and p["alpha"] > 0]
        xs = [p["alpha"] for p in line]
        bands = [plots.PlottedRate(p["rude"], p["low"], p["high"]) for p in line]
        plots.line(panel, xs, bands, 0, "measured")
        labels = {"slots": "slot by slot", "sequence": "sequence level"}
        for j, (name, label) in enumerate(labels.items(), start=1):
            panel.plot(xs, [100 * p[name] for p in line], label=label, **{**plots.style(j), "marker": ""})
        panel.set_xlabel("α")
        panel.set_title(f"β = {beta:g}", loc="left", fontsize=10)
        plots.percent(panel)
    panels[0].set_ylabel("rude")
    plots.legend(figure, 3)
    return figure


DECODING = Experiment(
    "theory-decoding",
    5,
    "The theory on trained models, token by token",
    "ED on a trained pair is as rude as decoding the exact tilt token by token would be.",
    f"The rude rate of ED over {REPEATS} completions per request is within {100 * TOLERANCE:.0f} points of the closed "
    "form of the language slot by slot, wherever α > 0 and at least half of the completions are valid.",
    measure,
    draw,
    "Added after the finding above had failed, to explain it; the tolerance is the same. A slot is a whole phrase and "
    "not a token; its first tokens decide which phrase it is.",
)
