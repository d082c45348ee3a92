"""Finding 5 on trained models: is the implied reward the reward, and are samples of ED distributed as predicted?

The aligned model is trained on base · exp(r/β), r = −(number of rude words), by rejection. The probabilities of the
toy language are known, so the normalizer and the sequence-level prediction come from the language itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eddecode.experiments.findings import plots
from eddecode.experiments.findings.criteria import Counts, rate
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable
from eddecode.experiments.findings.harness import ContrastTarget
from eddecode.experiments.training import reply_ids
from eddecode.testbed import language, rules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness

LANGUAGE_SAMPLES = 6000
GENTLE = 0.6
"""α/β up to which the prediction must be met."""
TOLERANCE = 0.10
SLOPE = (0.8, 1.25)
SHOWN = 2.0
"""Largest α/β in the picture."""
COLUMNS = ("β", "α", "α/β", "predicted rude %", "measured rude %", "valid %")


def sample_rude_counts(mood: str, samples: int = LANGUAGE_SAMPLES) -> Counts:
    """(samples,) int64: numbers of rude words in replies drawn from the language, over all products."""
    rng = random.Random(f"world:{mood}")
    products = rules.PRODUCTS
    drawn = (language.CustomerRequest("", mood, products[i % len(products)]) for i in range(samples))
    return np.array([language.count_rude(language.sample_reply(request, rng)) for request in drawn])


def predicted_rate(counts: Sequence[Counts], strength: float) -> float:
    """Rude rate of language · exp(strength · rude words), mean over moods: sequence-level ED at α/β = strength."""
    rates = []
    for each in counts:
        weights = np.exp(strength * (each - each.max()))
        rates.append(float(weights[each > 0].sum() / weights.sum()))
    return float(np.mean(rates))


def regression(harness: ExperimentHarness, beta: float, log_z: dict[str, float]) -> tuple[float, float]:
    """Slope and R² of log(p_aligned/p_base) + log Z on r/β, over replies of the language to held-out requests."""
    key = harness.key("regression", harness.tilted(beta).digest)
    if key not in harness.model_cache:
        rng = random.Random(1)
        replies = [language.sample_reply(request, rng) for request in harness.requests]
        ids = [reply_ids(harness.model_cache.tokenizer, reply) for reply in replies]
        sampler = harness.sampler(ContrastTarget(harness.base, (harness.tilted(beta),)))
        scores = sampler.score([r.text for r in harness.requests], ids, prompt_index=range(len(ids)))
        y = [
            score.implied_reward + log_z[request.mood]
            for score, request in zip(scores, harness.requests, strict=True)
        ]
        x = [-language.count_rude(reply) / beta for reply in replies]
        harness.model_cache.store(key, {"x": x, "y": y})
    stored = harness.model_cache.load(key)
    slope = float(np.polyfit(stored["x"], stored["y"], 1)[0])
    return slope, float(np.corrcoef(stored["x"], stored["y"])[0, 1] ** 2)


def compare_rates(
    harness: ExperimentHarness, beta: float, counts: Sequence[Counts]
) -> list[dict[str, float]]:
    """Per α, the predicted rude rate and the measured rude rate of ED."""
    points = []
    for alpha, condition in harness.sweep(ContrastTarget(harness.base, (harness.tilted(beta),))).items():
        r = rate(condition.rude)
        points.append(
            {
                "beta": beta,
                "alpha": alpha,
                "predicted": predicted_rate(counts, alpha / beta),
                "rude": r.rate,
                "low": r.low,
                "high": r.high,
                "valid": float(condition.valid.mean()),
            }
        )
    return points


def _row(p: dict[str, float]) -> tuple[str, ...]:
    measured = f"{100 * p['rude']:.1f} [{100 * p['low']:.1f}, {100 * p['high']:.1f}]"
    settings = (f"{x:.2g}" for x in (p["beta"], p["alpha"], p["alpha"] / p["beta"]))
    return (*settings, f"{100 * p['predicted']:.1f}", measured, f"{100 * p['valid']:.1f}")


def measure(harness: ExperimentHarness) -> ExperimentResult:
    """A regression per β, and the rude rate of ED against its prediction."""
    counts = [sample_rude_counts(mood) for mood in rules.MOODS]
    points: list[dict[str, float]] = []
    fits = []
    for beta in harness.size.tilt_betas:
        log_z = {
            m: math.log(float(np.exp(-c / beta).mean())) for m, c in zip(rules.MOODS, counts, strict=True)
        }
        slope, r2 = regression(harness, beta, log_z)
        fits.append({"beta": beta, "slope": slope, "r2": r2})
        points += compare_rates(harness, beta, counts)
    gentle = [p for p in points if p["alpha"] > 0 and p["alpha"] / p["beta"] <= GENTLE]
    worst = max(gentle, key=lambda p: abs(p["rude"] - p["predicted"]))
    gap = abs(worst["rude"] - worst["predicted"])
    strongest = fits[-1]
    summary = (
        "; ".join(f"β={f['beta']:g}: slope {f['slope']:.2f}, R² {f['r2']:.2f}" for f in fits)
        + f"; largest gap to the prediction at α/β ≤ {GENTLE:g}: {100 * gap:.1f} points (α={worst['alpha']:g}, "
        f"β={worst['beta']:g})"
    )
    holds = gap <= TOLERANCE and SLOPE[0] <= strongest["slope"] <= SLOPE[1] and strongest["r2"] >= 0.5
    table = ResultTable("Tilted pairs: predicted and measured", COLUMNS, [_row(p) for p in points])
    return ExperimentResult(holds, summary, {"fits": fits, "points": points}, [table])


def draw(results: Sequence[ExperimentResult]) -> Figure:
    """Measured against predicted rude rate, a line per β (first seed)."""
    data = results[0].figures
    figure, (panel,) = plots.axes()
    shown = [p for p in data["points"] if p["alpha"] >= 0 and p["alpha"] / p["beta"] <= SHOWN]
    for i, fit in enumerate(data["fits"]):
        line = [p for p in shown if p["beta"] == fit["beta"]]
        xs = [p["alpha"] / p["beta"] for p in line]
        label = f"β={fit['beta']:g}, measured"
        panel.plot(xs, [100 * p["rude"] for p in line], label=label, **plots.style(i))
    prediction = sorted((p["alpha"] / p["beta"], 100 * p["predicted"]) for p in shown)  # of α/β alone
    panel.plot(*zip(*prediction, strict=True), color="black", linestyle=":", linewidth=1)
    panel.set_xlabel("α/β (dotted: predicted from the language, sequence level)")
    plots.percent(panel)
    panel.set_ylabel("rude")
    plots.legend(figure, 4)
    return figure


TRAINED = Experiment(
    "theory-trained",
    5,
    "The theory on trained models",
    "The log-ratio of the trained pair is the reward that it was tilted by, and ED follows the sequence-level "
    "prediction while α/β is small.",
    f"At the strongest tilt, regressing log(p_aligned/p_base) + log Z on r/β gives a slope in [{SLOPE[0]:g}, "
    f"{SLOPE[1]:g}] and R² ≥ 0.5; and the rude rate of ED is within {100 * TOLERANCE:.0f} points of the prediction "
    f"wherever 0 < α/β ≤ {GENTLE:g}.",
    measure,
    draw,
    "The prediction is that of the language, so what the models have not learned of the language counts as a "
    "difference too.",
)
