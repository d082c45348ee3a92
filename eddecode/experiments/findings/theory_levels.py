"""Finding 5 on trained models, looked at twice: the ratio of the pair by levels of the reward.

`theory_trained` asks of each single reply that its log-ratio be the reward. But a trained pair has noise in every
log-ratio, and E[log ratio | r] lies below log E[ratio | r], which is log p_aligned(r)/p_base(r), by about half the
noise's variance; that variance grows with rudeness, because the aligned model has hardly seen such text. What the
theory says of rates is looked at here in both ways: the mean of the ratio over the world's replies, and the rates
themselves, counted on the two models' own completions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eddecode.experiments.findings import theory_slots
from eddecode.experiments.findings.finding import Finding, Outcome, Table
from eddecode.experiments.findings.harness import Target
from eddecode.experiments.findings.theory_decoding import Counts, counted
from eddecode.testbed import language as grammar
from eddecode.testbed import rules as english

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import Bench

REPLIES = 6
"""Replies of the world per request that the log-ratio is measured on."""
ENOUGH = 30
"""Replies that a level of the reward needs to be counted."""
SEEN = 5
"""Completions of each model that a level needs for its rates to be compared."""
SLOPE = (0.8, 1.25)
HEADS = (
    "β", "rude words", "replies", "r/β", "mean of log-ratio + log Z", "variance", "log of mean ratio + log Z",
    "completions: base, aligned", "log of ratio of rates + log Z",
)  # fmt: skip


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


def add_rates(found: Sequence[dict[str, float]], base: Counts, aligned: Counts, log_z: float) -> None:
    """To each level its number of completions of either model, and the log of the ratio of their rates + log Z where
    both are enough."""
    for level in found:
        n, m = (int((counts == level["words"]).sum()) for counts in (base, aligned))
        level |= {"base": float(n), "aligned": float(m)}
        if min(n, m) >= SEEN:
            level["log_rates"] = float(np.log(m / aligned.size) - np.log(n / base.size)) + log_z
            level["weight"] = 1 / (1 / n + 1 / m)  # of a log of a ratio of counts


def slope(found: Sequence[dict[str, float]], name: str, weight: str = "replies") -> float:
    """Of a figure on r/β over the levels that have it, each with a weight; NaN with fewer than two."""
    known = [level for level in found if name in level]
    if len(known) < 2:
        return float("nan")
    x, y, n = (np.array([level[key] for level in known]) for key in ("expected", name, weight))
    return float(np.polyfit(x, y, 1, w=np.sqrt(n))[0])


def measure(bench: Bench) -> Outcome:
    """The slope on r/β of log-ratios, of the log of mean ratios, and of the log of the ratio of rates."""
    fits, everything = [], []
    own, _ = counted(bench, Target.single(bench.base), [0.0])[0.0]
    for beta in bench.scale.tilts:
        found = levels(bench, beta)
        aligned, _ = counted(bench, Target(bench.base, (bench.tilted(beta),)), [-1.0])[-1.0]
        log_z = float(np.mean([theory_slots.normaliser(mood, beta) for mood in english.MOODS]))
        add_rates(found, own, aligned, log_z)
        slopes = {name: slope(found, name) for name in ("mean", "log_mean")}
        fits.append({"beta": beta, **slopes, "log_rates": slope(found, "log_rates", "weight")})
        everything += found
    holds = all(SLOPE[0] <= fit["log_rates"] <= SLOPE[1] for fit in fits)
    text = "slope of the log of rates (of the log of mean ratios; of single log-ratios): " + "; ".join(
        f"β={f['beta']:g}: {f['log_rates']:.2f} ({f['log_mean']:.2f}; {f['mean']:.2f})" for f in fits
    )
    table = Table("Tilted pairs, level by level of the reward", HEADS, [_row(level) for level in everything])
    return Outcome(holds, text, {"fits": fits, "levels": everything}, [table])


def _row(level: dict[str, float]) -> tuple[str, ...]:
    whole = (f"{level['beta']:g}", f"{level['words']:.0f}", f"{level['replies']:.0f}")
    figures = (f"{level[name]:.2f}" for name in ("expected", "mean", "variance", "log_mean"))
    rates = f"{level['log_rates']:.2f}" if "log_rates" in level else ""
    return (*whole, *figures, f"{level['base']:.0f}, {level['aligned']:.0f}", rates)


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """Against r/β, a line per β: single log-ratios beside the log of their mean, and rates; grey where it should lie
    (first seed)."""
    from eddecode.experiments.findings import plots as pictures

    data = outcomes[0].figures
    figure, (left, right) = pictures.axes(2)
    for i, fit in enumerate(data["fits"]):
        mine, look = [x for x in data["levels"] if x["beta"] == fit["beta"]], pictures.style(i)
        xs = [x["expected"] for x in mine]
        left.plot(xs, [x["mean"] for x in mine], label=f"β={fit['beta']:g}", **look)
        left.plot(xs, [x["log_mean"] for x in mine], **{**look, "linestyle": ":", "marker": ""})
        known = [x for x in mine if "log_rates" in x]
        right.plot([x["expected"] for x in known], [x["log_rates"] for x in known], **look)
    for panel in (left, right):
        reach = panel.get_xlim()[0]
        panel.plot([reach, 0], [reach, 0], color=pictures.GREY, linewidth=0.8)
        panel.set_xlabel("r/β")
    left.set_ylabel("with log Z, nats")
    left.set_title("Mean of the log-ratio (dotted: log of the mean ratio)", loc="left", fontsize=10)
    right.set_title("Log of the ratio of rates", loc="left", fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


LEVELS = Finding(
    "theory-levels",
    5,
    "The theory on trained models, level by level",
    "Over replies of equal reward, the aligned model's rate is the base's times exp(r/β)/Z: what makes single "
    "log-ratios too steep is their noise.",
    f"At every tilt, the slope of log(rate of the aligned / rate of the base) + log Z on r/β, over the numbers of rude "
    f"words that at least {SEEN} completions of each have, is in [{SLOPE[0]:g}, {SLOPE[1]:g}].",
    measure,
    draw,
    "Added after the finding above had failed, to say why; its bounds are the same. A mean of ratios rests on its "
    "largest terms, so that at a strong tilt the log of it lies too low for the rudest levels.",
)
