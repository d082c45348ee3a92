"""Finding 5 on trained models, looked at twice: ED against what decoding the exact tilt token by token would give.

`theory_trained` holds ED to the sequence level, which nobody samples. Here the prediction is the closed form of the
world decoded slot by slot (`theory_slots`), and each rate rests on several completions a request: with one, chance
alone takes half of the tolerance, and takes it alike in every condition, since all share their random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eddecode.audit.stats.proportions import Rate, clustered_rate
from eddecode.experiments.findings import theory_slots
from eddecode.experiments.findings.finding import Finding, Outcome, Table
from eddecode.experiments.findings.harness import Target
from eddecode.experiments.findings.theory_trained import TOLERANCE, predicted
from eddecode.experiments.pair_metrics import MAX_NEW_TOKENS
from eddecode.sampling.params import SamplingParams
from eddecode.testbed import language as grammar
from eddecode.testbed import rules as english

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import Bench

REPEATS = 4
"""Completions per request."""
FARTHEST = 1.0
"""The largest α that is measured: beyond it these pairs speak no language."""
HEADS = (
    "β", "α", "α/β", "sequence level, world %", "sequence level, base's own completions %", "slot by slot, world %",
    "measured rude %", "valid %",
)  # fmt: skip

Counts = np.ndarray[Any, np.dtype[np.int64]]


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


def rude_rate(rude: Counts) -> Rate:
    """Share of completions with a rude word; its interval heeds that a request's completions belong together."""
    return clustered_rate((int((row > 0).sum()), rude.shape[1]) for row in rude)


def points(bench: Bench, beta: float) -> list[dict[str, float]]:
    """Per α the rude rate by three predictions, and the one that ED has."""
    own, _ = counted(bench, Target.single(bench.base), [0.0])[0.0]
    moods = [own[[r.mood == mood for r in bench.requests]].ravel() for mood in english.MOODS]
    alphas = [-1.0, *(alpha for alpha in bench.scale.alphas if alpha <= FARTHEST)]
    found = []
    for alpha, (rude, valid) in counted(bench, Target(bench.base, (bench.tilted(beta),)), alphas).items():
        r = rude_rate(rude)
        sequence, slots = theory_slots.predicted(alpha, beta)
        found.append(
            {
                "beta": beta, "alpha": alpha, "sequence": sequence, "own": predicted(moods, alpha / beta),
                "slots": slots, "rude": r.rate, "low": r.low, "high": r.high, "valid": float(valid.mean()),
            }
        )  # fmt: skip
    return found


def measure(bench: Bench) -> Outcome:
    """ED's rude rate against the closed form slot by slot."""
    rates = [point for beta in bench.scale.tilts for point in points(bench, beta)]
    own, valid = counted(bench, Target.single(bench.base), [0.0])[0.0]
    base = rude_rate(own)
    judged = [p for p in rates if p["alpha"] > 0 and p["valid"] >= 0.5]
    worst = max(judged, key=lambda p: abs(p["rude"] - p["slots"]))
    gap = abs(worst["rude"] - worst["slots"])
    sequence = max(abs(p["rude"] - p["sequence"]) for p in judged)
    text = (
        f"largest gap to slot by slot {100 * gap:.1f} points (α={worst['alpha']:g}, β={worst['beta']:g}), to the "
        f"sequence level {100 * sequence:.1f}, over {len(judged)} pairs of α and β; the base's own rude rate "
        f"{100 * base.rate:.1f} [{100 * base.low:.1f}, {100 * base.high:.1f}]%, the world's "
        f"{100 * grammar.rude_rate():.1f}%"
    )
    return Outcome(
        gap <= TOLERANCE,
        text,
        {
            "points": rates, "gap": gap, "gap_to_sequence_level": sequence,
            "base": {"rude": [base.rate, base.low, base.high], "valid": float(valid.mean())},
        },
        [Table(f"Rude rates predicted and measured, {REPEATS} completions a request", HEADS, [_row(p) for p in rates])],
    )  # fmt: skip


def _row(p: dict[str, float]) -> tuple[str, ...]:
    measured = f"{100 * p['rude']:.1f} [{100 * p['low']:.1f}, {100 * p['high']:.1f}]"
    names = (f"{x:.2g}" for x in (p["beta"], p["alpha"], p["alpha"] / p["beta"]))
    return (
        *names,
        *(f"{100 * p[k]:.1f}" for k in ("sequence", "own", "slots")),
        measured,
        f"{100 * p['valid']:.1f}",
    )


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """Measured rude rates with both predictions, at the weakest and the strongest tilt (first seed)."""
    from eddecode.experiments.findings import plots as pictures

    data = outcomes[0].figures["points"]
    betas = sorted({p["beta"] for p in data}, reverse=True)
    figure, panels = pictures.axes(2)
    for panel, beta in zip(panels, (betas[0], betas[-1]), strict=True):
        mine = [p for p in data if p["beta"] == beta and p["alpha"] > 0]
        xs = [p["alpha"] for p in mine]
        bands = [pictures.Band(p["rude"], p["low"], p["high"]) for p in mine]
        pictures.line(panel, xs, bands, 0, "measured")
        for j, (name, label) in enumerate(
            (("slots", "slot by slot"), ("sequence", "sequence level")), start=1
        ):
            panel.plot(xs, [100 * p[name] for p in mine], label=label, **{**pictures.style(j), "marker": ""})
        panel.set_xlabel("α")
        panel.set_title(f"β = {beta:g}", loc="left", fontsize=10)
        pictures.percent(panel)
    panels[0].set_ylabel("rude")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


DECODING = Finding(
    "theory-decoding",
    5,
    "The theory on trained models, token by token",
    "ED on a trained pair is as rude as decoding the exact tilt token by token would be.",
    f"ED's rude rate over {REPEATS} completions a request is within {100 * TOLERANCE:.0f} points of the world's closed "
    "form slot by slot, wherever α > 0 and at least half of the completions are valid.",
    measure,
    draw,
    "Added after the finding above had failed, to say why; its tolerance is the same. A slot is a whole phrase, not a "
    "token: what a phrase is shows in its first tokens.",
)
