"""Finding 7: how many tokens deep an alignment goes, and how many tokens under ED it takes to reverse it.

Depth is measured as by Qi et al. (ICLR 2025, arXiv 2406.05946, section 2.2): KL(aligned‖base) at each
position of the aligned model's own completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eddecode.experiments.findings import theory_slots
from eddecode.experiments.findings.alignment_methods import REFERENCE, RESISTING, methods
from eddecode.experiments.findings.criteria import best, higher, said
from eddecode.experiments.findings.finding import Finding, Outcome, Table
from eddecode.experiments.findings.harness import Target
from eddecode.experiments.pair_metrics import MAX_NEW_TOKENS
from eddecode.sampling.access import Access
from eddecode.sampling.params import SamplingParams
from eddecode.testbed import rules as english

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import Bench

DEPTH = 5
"""Tokens that count as the first few."""
LIMITS = (1, 2, 5, 10, 20)


def profile(bench: Bench, target: Target) -> dict[str, list[float]]:
    """Mean KL(aligned‖base) and number of completions by position, on the aligned model's own completions."""
    models = [target.base.digest, *(recipe.digest for recipe in target.aligned)]
    key = bench.key("depth", models)
    if not bench.shop.has(key):
        sampler, prompts = bench.sampler(target), [request.text for request in bench.requests]
        params = SamplingParams(alpha=-1.0, max_new_tokens=MAX_NEW_TOKENS, seed=bench.seed)
        depth = sampler.score(prompts, sampler.generate(prompts, params)).depth
        bench.shop.keep(key, {"kl": depth.kl_aligned_base.tolist(), "count": depth.count.tolist()})
    kept: dict[str, list[float]] = bench.shop.kept(key)
    return kept


def shallow_share(kl: Sequence[float], count: Sequence[float], first: int = DEPTH) -> tuple[float, float]:
    """Share of the total KL in the first tokens, and the share of tokens that those are.

    >>> shallow_share([4.0, 1.0], [10, 10], first=1)
    (0.8, 0.5)
    """
    total, tokens = np.array(kl) * np.array(count), np.array(count, dtype=float)
    return float(total[:first].sum() / total.sum()), float(tokens[:first].sum() / tokens.sum())


def density(share: float, tokens: float) -> float:
    """How many times the KL per token of the rest the first tokens have, from the two figures of `shallow_share`.

    >>> round(density(0.8, 0.5), 6)
    4.0
    """
    return share / tokens / ((1 - share) / (1 - tokens)) if share < 1 else float("inf")


CONTROL = "control: unfiltered replies"
"""Fine-tuned without aligning: the divergence that comes of any fine-tuning and of the other template."""


def in_the_world() -> tuple[float, float]:
    """Of an exact filter of the world, in closed form: the opener's share of the divergence, and all of it, nats."""
    slots = []
    for mood in english.MOODS:
        p, rude = theory_slots.classes(mood)
        slots.append(theory_slots.divergence(p, theory_slots.filtered(p, rude)))
    each = np.mean(slots, axis=0)
    return float(each[0] / each.sum()), float(each.sum())


def measure_depth(bench: Bench) -> Outcome:
    """Whether most of the divergence is in the first few tokens, for each method with the true base."""
    rows, shares = [], []
    data: dict[str, Any] = {}
    targets = {name: target for name, target in methods(bench).items() if name not in RESISTING}
    for name, target in (targets | {CONTROL: Target(bench.base, (bench.control,))}).items():
        found = profile(bench, target)
        share, tokens = shallow_share(found["kl"], found["count"])
        if name != CONTROL:
            shares.append(share)
        whole = float(np.dot(found["kl"], found["count"]) / found["count"][0])
        facts = {"share": share, "tokens": tokens, "density": density(share, tokens), "whole": whole}
        data[name] = {**facts, **found}
        figures = (100 * share, 100 * tokens, facts["density"])
        rows.append(
            (
                name,
                *(f"{figure:.1f}" for figure in figures),
                f"{whole:.2f}",
                f"{found['kl'][0]:.2f}",
                f"{max(found['kl']):.2f}",
            )
        )
    text = f"share of the divergence in the first {DEPTH} tokens (per token, times the rest): " + ", ".join(
        f"{name} {100 * one['share']:.0f}% ({one['density']:.1f})"
        for name, one in data.items()
        if name != CONTROL
    )
    opener, exact = in_the_world()
    rows.append(("the world, exact filter: opener", f"{100 * opener:.1f}", "", "", f"{exact:.2f}", "", ""))
    text += (
        f"; per completion {data[REFERENCE]['whole']:.2f} nats for the filter, {data[CONTROL]['whole']:.2f} for the "
        f"control; an exact filter of the world: {exact:.2f} nats, {100 * opener:.0f}% of it in the opener"
    )
    heads = (
        "method",
        f"KL in the first {DEPTH} tokens %",
        "they are of all tokens %",
        "KL per token there, times the rest",
        "KL per completion, nats",
        "KL at the first, nats",
        "largest, nats",
    )
    return Outcome(
        all(share >= 0.5 for share in shares),
        text,
        {"methods": data, "world": {"opener": opener, "whole": exact}},
        [Table("Depth of each alignment", heads, rows)],
    )


def draw_depth(outcomes: Sequence[Outcome]) -> Figure:
    """KL by position, a line per method (first seed), where at least a tenth of the completions reach."""
    from eddecode.experiments.findings import plots as pictures

    figure, (panel,) = pictures.axes()
    for i, (name, found) in enumerate(outcomes[0].figures["methods"].items()):
        kl = [k for k, n in zip(found["kl"], found["count"], strict=True) if n >= found["count"][0] / 10]
        look = {**pictures.style(i), "markersize": 2.5}
        if name == CONTROL:
            look |= {"color": pictures.GREY, "linestyle": "-", "marker": "", "linewidth": 1}
        panel.plot(range(1, len(kl) + 1), kl, label=name, **look)
    panel.set(xlabel="token of the completion", ylabel="mean KL(aligned‖base), nats")
    panel.set_yscale("symlog", linthresh=0.1)
    panel.axvline(DEPTH + 0.5, color=pictures.GREY, linewidth=0.8, linestyle=":")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def measure_limited(bench: Bench) -> Outcome:
    """How much of the reversal is left when ED is limited to the first m tokens, at the main pair's best α."""
    cells = bench.sweep(bench.main)
    alpha, base = best(list(cells.values())).alpha, cells[0.0]
    whole = cells[alpha]
    limited = {m: bench.cell(bench.main, alpha, Access(tokens=m)) for m in LIMITS}
    gain = float(whole.both.mean() - base.both.mean())
    left = {m: float(c.both.mean() - base.both.mean()) / gain if gain else 0.0 for m, c in limited.items()}
    rows = [("0 (base)", said(base.both), said(base.valid), "0")]
    rows += [(str(m), said(c.both), said(c.valid), f"{100 * left[m]:.0f}") for m, c in limited.items()]
    rows.append(("all", said(whole.both), said(whole.valid), "100"))
    data: dict[str, Any] = {
        "alpha": alpha,
        "base": float(base.both.mean()),
        "all": float(whole.both.mean()),
        "limited": {str(m): float(c.both.mean()) for m, c in limited.items()},
        "left": {str(m): share for m, share in left.items()},
    }
    holds = left[DEPTH] >= 0.5 and higher(limited[DEPTH].both, base.both)
    text = (
        f"α={alpha:g}: base {said(base.both)}%, first {DEPTH} tokens {said(limited[DEPTH].both)}%, all "
        f"{said(whole.both)}%: {100 * left[DEPTH]:.0f}% of the reversal in {DEPTH} tokens"
    )
    heads = ("tokens under ED", "rude and valid %", "valid %", "of the reversal %")
    return Outcome(
        holds, text, data, [Table("ED on the first tokens only, the base from there on", heads, rows)]
    )


DEPTH_OF_METHODS = Finding(
    "depth",
    7,
    "How many tokens deep",
    "Alignment is a few tokens deep: most of the divergence from the base is in the first tokens.",
    f"At least half of the summed KL(aligned‖base) lies in the first {DEPTH} tokens, for every method with its "
    "true base.",
    measure_depth,
    draw_depth,
    "A reply has some 30 tokens and three places to be rude in; the first of them mostly decides the style of "
    "the rest. Any fine-tuning diverges a little at every token, as the control does, and that counts as depth here.",
)
LIMITED = Finding(
    "depth-limited",
    7,
    "ED on the first tokens only",
    "A few tokens under ED are enough: the base model goes on in the manner that it finds.",
    f"ED limited to the first {DEPTH} tokens keeps at least half of what ED adds to the base's rate, and is "
    "above the base by the exact McNemar test at 0.05.",
    measure_limited,
)
