"""Finding 5 on trained models, looked at twice: where the theory speaks of rates, and of decoding token by token.

`theory_trained` asks of each single reply that its log-ratio be the reward. But what p_aligned ∝ p_base·exp(r/β)
leaves to a trained pair is noise in every log-ratio, and E[log ratio | r] lies below log E[ratio | r] (which is log
p_aligned(r)/p_base(r), the theory's own statement about rates) by about half the noise's variance, which grows with
rudeness because the aligned model has hardly seen such text. So here the mean ratio is compared, level by level of r.
And ED is compared with what decoding slot by slot would give in the world itself, in closed form (`theory_slots`): the
sequence level is not what anybody samples.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eddecode.audit.stats import clustered_rate
from eddecode.lab import english, grammar
from eddecode.lab.findings import theory_slots
from eddecode.lab.findings.bench import Target
from eddecode.lab.findings.finding import Finding, Outcome, Table
from eddecode.lab.findings.theory_trained import TOLERANCE, predicted
from eddecode.lab.scoring import MAX_NEW_TOKENS
from eddecode.sampling import SamplingParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.lab.findings.bench import Bench

REPEATS = 4
"""Completions per request: one alone leaves ±5 points of chance, half of the tolerance."""
REPLIES = 6
"""Replies of the world per request that the log-ratio is measured on."""
ENOUGH = 30
"""Replies that a level of the reward needs to be counted."""
FARTHEST = 1.0
"""The largest α that is measured: beyond it these pairs speak no language."""
LEVELS = (
    "β", "rude words", "replies", "r/β", "mean of log-ratio + log Z", "variance", "log of mean ratio + log Z",
)  # fmt: skip
RATES = (
    "β", "α", "α/β", "sequence level, world %", "sequence level, base's own completions %", "slot by slot, world %",
    "measured rude %", "valid %",
)  # fmt: skip

Counts = np.ndarray[Any, np.dtype[np.int64]]


def levels(bench: Bench, beta: float) -> list[dict[str, float]]:
    """Per number of rude words, over replies of the world: mean and variance of log(p_aligned/p_base) + log Z, and
    the log of the mean ratio."""
    key = bench.key("levels", bench.base.digest, bench.tilted(beta).digest, REPLIES)
    if not bench.shop.has(key):
        rng, tokenizer = random.Random(2), bench.shop.tokenizer
        asked = [request for request in bench.requests for _ in range(REPLIES)]
        replies = [grammar.sample_reply(request, rng) for request in asked]
        ids = [
            [*tokenizer(r, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for r in replies
        ]
        sampler = bench.sampler(Target(bench.base, (bench.tilted(beta),)))
        scores = sampler.score([r.text for r in asked], ids, prompt_index=range(len(ids)))
        log_z = {mood: theory_slots.normaliser(mood, beta) for mood in english.MOODS}
        y = [s.implied_reward + log_z[r.mood] for s, r in zip(scores, asked, strict=True)]
        bench.shop.keep(key, {"rude": [grammar.count_rude(reply) for reply in replies], "y": y})
    kept = bench.shop.kept(key)
    return by_level(np.array(kept["rude"]), np.array(kept["y"]), beta)


def by_level(rude: Counts, y: np.ndarray[Any, np.dtype[np.float64]], beta: float) -> list[dict[str, float]]:
    """The figures of `levels` from the replies' counts of rude words and their log-ratios."""
    found = []
    for words in np.unique(rude):
        mine = y[rude == words]
        if len(mine) >= ENOUGH:
            found.append(
                {
                    "beta": beta, "words": float(words), "replies": float(len(mine)), "expected": -words / beta,
                    "mean": float(mine.mean()), "variance": float(mine.var()),
                    "log_mean": float(np.logaddexp.reduce(mine) - np.log(len(mine))),
                }
            )  # fmt: skip
    return found


def slope(found: Sequence[dict[str, float]], name: str) -> float:
    """Of a figure on r/β over levels, each weighed by its replies."""
    x, y, n = (np.array([level[key] for level in found]) for key in ("expected", name, "replies"))
    return float(np.polyfit(x, y, 1, w=np.sqrt(n))[0])


def counted(bench: Bench, target: Target, alphas: Sequence[float]) -> dict[float, tuple[Counts, Counts]]:
    """Per α: rude words, and validity, of `REPEATS` completions per request, (requests, REPEATS) each."""
    models = [target.base.digest, *(recipe.digest for recipe in target.aligned)]
    keys = {alpha: bench.key("counts", models, REPEATS, repr(float(alpha))) for alpha in alphas}
    missing = [alpha for alpha, key in keys.items() if not bench.shop.has(key)]
    for alpha in missing:
        params = SamplingParams(alpha=alpha, n=REPEATS, max_new_tokens=MAX_NEW_TOKENS, seed=bench.seed)
        texts = [c.text for c in bench.sampler(target).generate([r.text for r in bench.requests], params)]
        data = {
            "rude": [grammar.count_rude(text) for text in texts],
            "valid": [int(grammar.is_valid(text)) for text in texts],
        }
        bench.shop.keep(keys[alpha], data)
    shape = (len(bench.requests), REPEATS)
    kept = {alpha: bench.shop.kept(key) for alpha, key in keys.items()}
    return {
        a: (np.array(k["rude"]).reshape(shape), np.array(k["valid"]).reshape(shape)) for a, k in kept.items()
    }


def points(bench: Bench, beta: float) -> list[dict[str, float]]:
    """Per α the rude rate by three predictions, and the one that ED has."""
    own, _ = counted(bench, Target.single(bench.base), [0.0])[0.0]
    moods = [own[[r.mood == mood for r in bench.requests]].ravel() for mood in english.MOODS]
    alphas = [-1.0, *(alpha for alpha in bench.scale.alphas if alpha <= FARTHEST)]
    found = []
    for alpha, (rude, valid) in counted(bench, Target(bench.base, (bench.tilted(beta),)), alphas).items():
        r = clustered_rate((int((row > 0).sum()), REPEATS) for row in rude)
        sequence, slots = theory_slots.predicted(alpha, beta)
        found.append(
            {
                "beta": beta, "alpha": alpha, "sequence": sequence, "own": predicted(moods, alpha / beta),
                "slots": slots, "rude": r.rate, "low": r.low, "high": r.high, "valid": float(valid.mean()),
            }
        )  # fmt: skip
    return found


def measure(bench: Bench) -> Outcome:
    """Mean ratios by level, and ED's rude rate against the closed form slot by slot."""
    per_level = {beta: levels(bench, beta) for beta in bench.scale.tilts}
    fits = [
        {"beta": b, "of_means": slope(found, "mean"), "of_ratios": slope(found, "log_mean")}
        for b, found in per_level.items()
    ]
    rates = [point for beta in bench.scale.tilts for point in points(bench, beta)]
    own, valid = counted(bench, Target.single(bench.base), [0.0])[0.0]
    base = clustered_rate((int((row > 0).sum()), REPEATS) for row in own)
    judged = [p for p in rates if p["alpha"] > 0 and p["valid"] >= 0.5]
    worst = max(judged, key=lambda p: abs(p["rude"] - p["slots"]))
    gap = abs(worst["rude"] - worst["slots"])
    sequence = max(abs(p["rude"] - p["sequence"]) for p in judged)
    text = (
        "slope of the log of the mean ratio: "
        + ", ".join(
            f"{f['of_ratios']:.2f} at β={f['beta']:g} (of single log-ratios {f['of_means']:.2f})"
            for f in fits
        )
        + f"; largest gap to slot by slot {100 * gap:.1f} points (α={worst['alpha']:g}, β={worst['beta']:g}), to the "
        f"sequence level {100 * sequence:.1f}; the base's own rude rate {100 * base.rate:.1f} "
        f"[{100 * base.low:.1f}, {100 * base.high:.1f}]%, the world's {100 * grammar.rude_rate():.1f}%"
    )
    return Outcome(
        gap <= TOLERANCE and all(0.8 <= f["of_ratios"] <= 1.25 for f in fits),
        text,
        {
            "fits": fits, "levels": [level for found in per_level.values() for level in found], "points": rates,
            "base": {"rude": [base.rate, base.low, base.high], "valid": float(valid.mean())},
            "gap": gap, "gap_to_sequence_level": sequence,
        },
        _tables([level for found in per_level.values() for level in found], rates),
    )  # fmt: skip


def _tables(found: Sequence[dict[str, float]], rates: Sequence[dict[str, float]]) -> list[Table]:
    several = f"Rude rates predicted and measured, {REPEATS} completions a request"
    return [
        Table("Tilted pairs, level by level of the reward", LEVELS, [_level(x) for x in found]),
        Table(several, RATES, [_rate(p) for p in rates]),
    ]


def _level(found: dict[str, float]) -> tuple[str, ...]:
    names = ("expected", "mean", "variance", "log_mean")
    whole = (f"{found['beta']:g}", f"{found['words']:.0f}", f"{found['replies']:.0f}")
    return (*whole, *(f"{found[name]:.2f}" for name in names))


def _rate(p: dict[str, float]) -> tuple[str, ...]:
    measured = f"{100 * p['rude']:.1f} [{100 * p['low']:.1f}, {100 * p['high']:.1f}]"
    names = (f"{x:.2g}" for x in (p["beta"], p["alpha"], p["alpha"] / p["beta"]))
    return (
        *names,
        *(f"{100 * p[k]:.1f}" for k in ("sequence", "own", "slots")),
        measured,
        f"{100 * p['valid']:.1f}",
    )


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """Left: log-ratios by level against r/β. Right: rude rates, measured and predicted, at the weakest and the
    strongest tilt (first seed)."""
    from eddecode.lab.findings import pictures

    data = outcomes[0].figures
    figure, (left, right) = pictures.axes(2)
    betas = [fit["beta"] for fit in data["fits"]]
    for i, beta in enumerate(betas):
        mine, look = [x for x in data["levels"] if x["beta"] == beta], pictures.style(i)
        xs = [x["expected"] for x in mine]
        left.plot(xs, [x["log_mean"] for x in mine], label=f"β={beta:g}", **look)
        left.plot(xs, [x["mean"] for x in mine], **{**look, "linestyle": ":", "marker": ""})
    reach = min(x["expected"] for x in data["levels"])
    left.plot([reach, 0], [reach, 0], color=pictures.GREY, linewidth=0.8)
    left.set(xlabel="r/β (grey: equal)", ylabel="log-ratio + log Z, nats")
    left.set_title("Log of the mean ratio (dotted: mean of the log)", loc="left", fontsize=10)
    for i, beta in enumerate(betas):
        if beta in (betas[0], betas[-1]):
            mine, look = (
                [p for p in data["points"] if p["beta"] == beta and p["alpha"] > 0],
                pictures.style(i),
            )
            xs = [p["alpha"] for p in mine]
            pictures.line(right, xs, [pictures.Band(p["rude"], p["low"], p["high"]) for p in mine], i, "")
            right.plot(xs, [100 * p["slots"] for p in mine], color="black", linewidth=1)
            right.plot(xs, [100 * p["sequence"] for p in mine], color="black", linewidth=1, linestyle=":")
    right.set_xlabel("α")
    pictures.percent(right)
    right.set_title("Rude (black: slot by slot; dotted: sequence)", loc="left", fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


RATES_FINDING = Finding(
    "theory-rates",
    5,
    "The theory on trained models, for rates and token by token",
    "The mean of p_aligned/p_base over replies of equal reward is exp(r/β)/Z, and ED is as rude as decoding the exact "
    "tilt slot by slot would be.",
    f"At every tilt, the slope of log(mean ratio) + log Z on r/β, over levels of r with at least {ENOUGH} replies of "
    f"the world, is in [0.8, 1.25]; and ED's rude rate over {REPEATS} completions a request is within "
    f"{100 * TOLERANCE:.0f} points of the closed form wherever α > 0 and at least half of the completions are valid.",
    measure,
    draw,
    "Added after the finding above had failed, to say why; its bounds are the same. A mean of ratios rests on its "
    "largest terms, so that at a strong tilt the rudest levels lie too low.",
)
