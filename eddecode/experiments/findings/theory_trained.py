"""Finding 5 on trained models: is the implied reward the reward, and does ED sample what the theory says?

The aligned model is trained on base · exp(r/β), r = −(number of rude words), by rejection. The world's
probabilities are known, so the normaliser and the sequence-level prediction come from the world itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eddecode.experiments.findings.criteria import rate
from eddecode.experiments.findings.finding import Finding, Outcome, Table
from eddecode.experiments.findings.harness import Target
from eddecode.testbed import language as grammar
from eddecode.testbed import rules as english

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import Bench

WORLD_SAMPLES = 6000
GENTLE = 0.6
"""α/β up to which the prediction is to be met."""
TOLERANCE = 0.10
SHOWN = 2.0
"""α/β up to which the picture goes."""
HEADS = ("β", "α", "α/β", "predicted rude %", "measured rude %", "valid %")


def world_counts(mood: str, samples: int = WORLD_SAMPLES) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(samples,) numbers of rude words in replies drawn from the world, over all products."""
    rng = random.Random(f"world:{mood}")
    drawn = (grammar.Request("", mood, english.PRODUCTS[i % len(english.PRODUCTS)]) for i in range(samples))
    return np.array([grammar.count_rude(grammar.sample_reply(request, rng)) for request in drawn])


def predicted(counts: Sequence[np.ndarray[Any, np.dtype[np.int64]]], strength: float) -> float:
    """Rude rate of world · exp(strength · rude words), the mean over moods: sequence-level ED at α/β = strength."""
    rates = []
    for each in counts:
        weights = np.exp(strength * (each - each.max()))
        rates.append(float(weights[each > 0].sum() / weights.sum()))
    return float(np.mean(rates))


def regression(bench: Bench, beta: float, log_z: dict[str, float]) -> tuple[float, float]:
    """Slope and R² of log(p_aligned/p_base) + log Z on r/β, over replies that the world gives to held-out requests."""
    key = bench.key("regression", bench.tilted(beta).digest)
    if not bench.shop.has(key):
        rng = random.Random(1)
        replies = [grammar.sample_reply(request, rng) for request in bench.requests]
        tokenizer = bench.shop.tokenizer
        ids = [
            [*tokenizer(reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for reply in replies
        ]
        sampler = bench.sampler(Target(bench.base, (bench.tilted(beta),)))
        scores = sampler.score([r.text for r in bench.requests], ids, prompt_index=range(len(ids)))
        y = [
            score.implied_reward + log_z[request.mood]
            for score, request in zip(scores, bench.requests, strict=True)
        ]
        bench.shop.keep(key, {"x": [-grammar.count_rude(reply) / beta for reply in replies], "y": y})
    kept = bench.shop.kept(key)
    x, found = np.array(kept["x"]), np.array(kept["y"])
    slope = float(np.polyfit(x, found, 1)[0])
    return slope, float(np.corrcoef(x, found)[0, 1] ** 2)


def compared(
    bench: Bench, beta: float, counts: Sequence[np.ndarray[Any, np.dtype[np.int64]]]
) -> list[dict[str, float]]:
    """Per α, the rude rate that is predicted and the one that ED has."""
    points = []
    for alpha, cell in bench.sweep(Target(bench.base, (bench.tilted(beta),))).items():
        r = rate(cell.rude)
        points.append(
            {
                "beta": beta, "alpha": alpha, "predicted": predicted(counts, alpha / beta),
                "rude": r.rate, "low": r.low, "high": r.high, "valid": float(cell.valid.mean()),
            }
        )  # fmt: skip
    return points


def _row(p: dict[str, float]) -> tuple[str, ...]:
    measured = f"{100 * p['rude']:.1f} [{100 * p['low']:.1f}, {100 * p['high']:.1f}]"
    names = (f"{x:.2g}" for x in (p["beta"], p["alpha"], p["alpha"] / p["beta"]))
    return (*names, f"{100 * p['predicted']:.1f}", measured, f"{100 * p['valid']:.1f}")


def measure(bench: Bench) -> Outcome:
    """Regression per β, and the rude rate of ED against its prediction."""
    counts = [world_counts(mood) for mood in english.MOODS]
    points: list[dict[str, float]] = []
    fits = []
    for beta in bench.scale.tilts:
        log_z = {
            m: math.log(float(np.exp(-c / beta).mean())) for m, c in zip(english.MOODS, counts, strict=True)
        }
        slope, r2 = regression(bench, beta, log_z)
        fits.append({"beta": beta, "slope": slope, "r2": r2})
        points += compared(bench, beta, counts)
    gentle = [p for p in points if p["alpha"] > 0 and p["alpha"] / p["beta"] <= GENTLE]
    worst = max(gentle, key=lambda p: abs(p["rude"] - p["predicted"]))
    met = all(abs(p["rude"] - p["predicted"]) <= TOLERANCE for p in gentle)
    strongest = fits[-1]
    said = (
        "; ".join(f"β={f['beta']:g}: slope {f['slope']:.2f}, R² {f['r2']:.2f}" for f in fits)
        + f"; largest gap to the prediction at α/β ≤ {GENTLE:g}: {100 * abs(worst['rude'] - worst['predicted']):.1f} "
        f"points (α={worst['alpha']:g}, β={worst['beta']:g})"
    )
    holds = met and 0.8 <= strongest["slope"] <= 1.25 and strongest["r2"] >= 0.5
    return Outcome(
        holds,
        said,
        {"fits": fits, "points": points},
        [Table("Tilted pairs: predicted and measured", HEADS, [_row(p) for p in points])],
    )


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """Measured against predicted rude rate, a line per β (first seed)."""
    from eddecode.experiments.findings import plots as pictures

    data = outcomes[0].figures
    figure, (panel,) = pictures.axes()
    shown = [p for p in data["points"] if p["alpha"] >= 0 and p["alpha"] / p["beta"] <= SHOWN]
    for i, fit in enumerate(data["fits"]):
        mine = [p for p in shown if p["beta"] == fit["beta"]]
        xs = [p["alpha"] / p["beta"] for p in mine]
        panel.plot(
            xs, [100 * p["rude"] for p in mine], label=f"β={fit['beta']:g}, measured", **pictures.style(i)
        )
    line = sorted((p["alpha"] / p["beta"], 100 * p["predicted"]) for p in shown)  # of α/β alone
    panel.plot(*zip(*line, strict=True), color="black", linestyle=":", linewidth=1)
    panel.set_xlabel("α/β (dotted: predicted from the world, sequence level)")
    pictures.percent(panel)
    panel.set_ylabel("rude")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


TRAINED = Finding(
    "theory-trained",
    5,
    "The theory on trained models",
    "The log-ratio of the trained pair is the reward it was tilted by, and ED follows the sequence-level "
    "prediction while α/β is small.",
    "At the strongest tilt, regressing log(p_aligned/p_base) + log Z on r/β gives a slope in [0.8, 1.25] and "
    f"R² ≥ 0.5; and ED's rude rate is within {100 * TOLERANCE:.0f} points of the prediction wherever 0 < α/β ≤ "
    f"{GENTLE:g}.",
    measure,
    draw,
    "The prediction is the world's, so what the models have not learnt of the world counts against it too.",
)
