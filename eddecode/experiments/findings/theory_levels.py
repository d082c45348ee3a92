"""Finding 5 on trained models, by levels of the reward: the ratio of the pair over all replies of equal reward.

`theory_trained` requires of each single reply that its log-ratio be the reward. But a trained pair has noise in every
log-ratio, and E[log ratio | r] is below log E[ratio | r], which is log p_aligned(r)/p_base(r), by about half the
variance of the noise; that variance grows with rudeness, because the aligned model was trained on hardly any such
text. What the theory predicts for rates is measured here in two ways: as the mean of the ratio over replies of the
language, and as rates counted on the completions of the two models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eddecode.experiments.findings import plots, theory_slots
from eddecode.experiments.findings.criteria import Counts, Floats
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable
from eddecode.experiments.findings.harness import ContrastTarget
from eddecode.experiments.findings.theory_decoding import count_completions
from eddecode.experiments.findings.theory_trained import SLOPE
from eddecode.experiments.training import reply_ids
from eddecode.testbed import language, rules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness

REPLIES = 6
"""Replies of the language per request that the log-ratio is measured on."""
MIN_REPLIES = 30
"""Replies that a level of the reward needs to be shown."""
MIN_COMPLETIONS = 5
"""Completions of each model that a level needs for its rates to be compared."""
COLUMNS = (
    "β", "rude words", "replies", "r/β", "mean of log-ratio + log Z", "variance", "log of mean ratio + log Z",
    "completions: base, aligned", "log of ratio of rates + log Z",
)  # fmt: skip


def reward_levels(harness: ExperimentHarness, beta: float) -> list[dict[str, float]]:
    """Levels by number of rude words, over replies of the language; see `group_by_reward`."""
    key = harness.key("levels", harness.base.digest, harness.tilted(beta).digest, REPLIES)
    if key not in harness.model_cache:
        rng, tokenizer = random.Random(2), harness.model_cache.tokenizer
        requests = [request for request in harness.requests for _ in range(REPLIES)]
        replies = [language.sample_reply(request, rng) for request in requests]
        ids = [reply_ids(tokenizer, reply) for reply in replies]
        sampler = harness.sampler(ContrastTarget(harness.base, (harness.tilted(beta),)))
        scores = sampler.score([r.text for r in requests], ids, prompt_index=range(len(ids)))
        log_z = {mood: theory_slots.log_normalizer(mood, beta) for mood in rules.MOODS}
        y = [s.implied_reward + log_z[r.mood] for s, r in zip(scores, requests, strict=True)]
        harness.model_cache.store(key, {"rude": [language.count_rude(reply) for reply in replies], "y": y})
    stored = harness.model_cache.load(key)
    return group_by_reward(np.array(stored["rude"]), np.array(stored["y"]), beta)


def group_by_reward(rude: Counts, y: Floats, beta: float) -> list[dict[str, float]]:
    """Per number of rude words: mean and variance of the log-ratios, and the log of the mean ratio.

    Args:
        rude: (n,) int64, numbers of rude words of replies.
        y: (n,) log(p_aligned/p_base) + log Z of the replies, nats.
        beta: of the tilt.
    """
    found = []
    for words in np.unique(rude):
        level = y[rude == words]
        if len(level) >= MIN_REPLIES:
            found.append(
                {
                    "beta": beta,
                    "words": float(words),
                    "replies": float(len(level)),
                    "expected": -words / beta,
                    "mean": float(level.mean()),
                    "variance": float(level.var()),
                    "log_mean": float(np.logaddexp.reduce(level) - np.log(len(level))),
                }
            )
    return found


def add_rates(found: Sequence[dict[str, float]], base: Counts, aligned: Counts, log_z: float) -> None:
    """Add to each level the numbers of completions of both models and, if large enough, the log of their ratio."""
    for level in found:
        n, m = (int((counts == level["words"]).sum()) for counts in (base, aligned))
        level |= {"base": float(n), "aligned": float(m)}
        if min(n, m) >= MIN_COMPLETIONS:
            level["log_rates"] = float(np.log(m / aligned.size) - np.log(n / base.size)) + log_z
            level["weight"] = 1 / (1 / n + 1 / m)  # inverse variance of the log of a ratio of counts


def slope(found: Sequence[dict[str, float]], name: str, weight: str = "replies") -> float:
    """Weighted slope of a figure on r/β over the levels that have it; NaN with fewer than two levels."""
    known = [level for level in found if name in level]
    if len(known) < 2:
        return float("nan")
    x, y, n = (np.array([level[key] for level in known]) for key in ("expected", name, weight))
    return float(np.polyfit(x, y, 1, w=np.sqrt(n))[0])


def measure(harness: ExperimentHarness) -> ExperimentResult:
    """The slope on r/β of log-ratios, of the log of mean ratios, and of the log of the ratio of rates."""
    fits, levels = [], []
    base, _ = count_completions(harness, ContrastTarget.single(harness.base), [0.0])[0.0]
    for beta in harness.size.tilt_betas:
        found = reward_levels(harness, beta)
        target = ContrastTarget(harness.base, (harness.tilted(beta),))
        aligned, _ = count_completions(harness, target, [-1.0])[-1.0]
        log_z = float(np.mean([theory_slots.log_normalizer(mood, beta) for mood in rules.MOODS]))
        add_rates(found, base, aligned, log_z)
        slopes = {name: slope(found, name) for name in ("mean", "log_mean")}
        fits.append({"beta": beta, **slopes, "log_rates": slope(found, "log_rates", "weight")})
        levels += found
    holds = all(SLOPE[0] <= fit["log_rates"] <= SLOPE[1] for fit in fits)
    summary = "slope of the log of rates (of the log of mean ratios; of single log-ratios): " + "; ".join(
        f"β={f['beta']:g}: {f['log_rates']:.2f} ({f['log_mean']:.2f}; {f['mean']:.2f})" for f in fits
    )
    table = ResultTable("Tilted pairs, by levels of the reward", COLUMNS, [_row(level) for level in levels])
    return ExperimentResult(holds, summary, {"fits": fits, "levels": levels}, [table])


def _row(level: dict[str, float]) -> tuple[str, ...]:
    whole = (f"{level['beta']:g}", f"{level['words']:.0f}", f"{level['replies']:.0f}")
    figures = (f"{level[name]:.2f}" for name in ("expected", "mean", "variance", "log_mean"))
    rates = f"{level['log_rates']:.2f}" if "log_rates" in level else ""
    return (*whole, *figures, f"{level['base']:.0f}, {level['aligned']:.0f}", rates)


def draw(results: Sequence[ExperimentResult]) -> Figure:
    """Log-ratios, and rates, against r/β, a line per β (first seed); the prediction is gray."""
    data = results[0].figures
    figure, (left, right) = plots.axes(2)
    for i, fit in enumerate(data["fits"]):
        line, look = [x for x in data["levels"] if x["beta"] == fit["beta"]], plots.style(i)
        xs = [x["expected"] for x in line]
        left.plot(xs, [x["mean"] for x in line], label=f"β={fit['beta']:g}", **look)
        left.plot(xs, [x["log_mean"] for x in line], **{**look, "linestyle": ":", "marker": ""})
        known = [x for x in line if "log_rates" in x]
        right.plot([x["expected"] for x in known], [x["log_rates"] for x in known], **look)
    for panel in (left, right):
        lowest = panel.get_xlim()[0]
        panel.plot([lowest, 0], [lowest, 0], color=plots.GRAY, linewidth=0.8)
        panel.set_xlabel("r/β")
    left.set_ylabel("with log Z, nats")
    left.set_title("Mean of the log-ratio (dotted: log of the mean ratio)", loc="left", fontsize=10)
    right.set_title("Log of the ratio of rates", loc="left", fontsize=10)
    plots.legend(figure, 5)
    return figure


LEVELS = Experiment(
    "theory-levels",
    5,
    "The theory on trained models, by levels of the reward",
    "Over replies of equal reward, the rate of the aligned model is that of the base times exp(r/β)/Z: single "
    "log-ratios are too steep because of their noise.",
    "At every tilt, the slope of log(rate of the aligned model / rate of the base) + log Z on r/β, over the numbers of "
    f"rude words that at least {MIN_COMPLETIONS} completions of each model have, is in [{SLOPE[0]:g}, {SLOPE[1]:g}].",
    measure,
    draw,
    "Added after the finding above had failed, to explain it; the bounds are the same. A mean of ratios rests on its "
    "largest terms, so at a strong tilt its logarithm is too low for the rudest levels.",
)
