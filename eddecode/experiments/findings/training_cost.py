"""Open question on finding 4: what does it cost to reach ED's rate by training the base directly?

ED needs no data and no training, and two forward passes per token. Direct disalignment needs data and training once,
and one pass per token. The oracle's fine-tuning is measured at several lengths, so that the length at which it is as
good as ED is known; its cost is in core seconds, tokens and labelled replies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from eddecode.experiments import corpus
from eddecode.experiments.findings import direct_disalignment, plots
from eddecode.experiments.findings.criteria import (
    MARGIN,
    CrossFittedBest,
    Flags,
    best_alpha,
    format_rate,
    is_not_lower,
    rate,
)
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable
from eddecode.experiments.findings.harness import ContrastTarget
from eddecode.experiments.pair_metrics import MAX_NEW_TOKENS
from eddecode.experiments.recipes import FineTuned, PreferenceTuned, TrainingRecipe
from eddecode.experiments.training import Encoder
from eddecode.sampling.params import SamplingParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness

STEPS = (5, 20, 80)
"""Lengths of fine-tuning on rude replies, beside that of `direct_disalignment`."""
COLUMNS = (
    "attack", "rude and valid %", "labelled replies", "training, tokens (about)", "training, core seconds",
    "passes per token", "as good as ED",
)  # fmt: skip


@dataclass(frozen=True)
class TrainedAttack:
    """A directly disaligned model and what training it took.

    Attributes:
        name: in the table.
        rude_and_valid: (n,) bool.
        replies: labelled replies that it was trained on; of a preference, both of each pair.
        tokens, seconds: of training, beyond the published models.
        as_good: whether it is at most a margin below ED.
    """

    name: str
    rude_and_valid: Flags
    replies: int
    tokens: int
    seconds: float
    as_good: bool

    @property
    def row(self) -> tuple[str, ...]:
        """A row under COLUMNS."""
        cost = (f"{self.replies:,}", f"{self.tokens:,}", f"{self.seconds:.1f}", "1")
        return (self.name, format_rate(self.rude_and_valid), *cost, "yes" if self.as_good else "no")

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        r = rate(self.rude_and_valid)
        data = {name: getattr(self, name) for name in ("name", "replies", "tokens", "seconds", "as_good")}
        return {**data, "rate": [r.rate, r.low, r.high]}


def training_tokens(harness: ExperimentHarness, recipe: FineTuned | PreferenceTuned) -> int:
    """About how many tokens pass through a model in training: steps × batch × mean length of an example."""
    encode = Encoder(harness.model_cache.tokenizer)
    examples = islice(corpus.exchanges(1), 200)
    mean = float(np.mean([len(encode.base_exchange(e)[0]) for e in examples]))
    passes = (
        4 if isinstance(recipe, PreferenceTuned) else 1
    )  # chosen and rejected, by the policy and the reference
    return round(recipe.config.steps * recipe.config.batch * passes * mean)


def recipes(harness: ExperimentHarness) -> dict[str, FineTuned | PreferenceTuned]:
    """Name → recipe: the oracle's fine-tuning by length, and preference tuning at its best strength."""
    found: dict[str, FineTuned | PreferenceTuned] = {}
    for steps in (*STEPS, direct_disalignment.RUDE.steps):
        config = replace(direct_disalignment.RUDE, steps=steps)
        oracle = FineTuned(harness.base, "rude", config=config, seed=harness.seed, chat=False)
        found[f"fine-tuned on rude replies, {steps} steps"] = oracle
    for one in direct_disalignment.direct_attacks(harness, direct_disalignment.PREFERENCES):
        assert isinstance(one.recipe, PreferenceTuned)
        found[one.name] = one.recipe
    return found


def attack(
    harness: ExperimentHarness, name: str, recipe: FineTuned | PreferenceTuned, ed: CrossFittedBest
) -> TrainedAttack:
    """One model, with what it cost."""
    flags = harness.condition(ContrastTarget.single(recipe)).rude_and_valid
    each = 2 if isinstance(recipe, PreferenceTuned) else 1
    return TrainedAttack(
        name,
        flags,
        recipe.config.steps * recipe.config.batch * each,
        training_tokens(harness, recipe),
        harness.model_cache.training_seconds(recipe),
        is_not_lower(flags, ed.rude_and_valid),
    )


def decoding_seconds(harness: ExperimentHarness, alpha: float) -> float:
    """Core seconds for one completion under ED, measured over all requests at once; kept with the measurements."""
    models = [recipe.digest for recipe in _models(harness.main_target)]
    key = harness.key("decoding seconds", models, repr(alpha))
    if key not in harness.model_cache:
        sampler, prompts = (
            harness.sampler(harness.main_target),
            [request.text for request in harness.requests],
        )
        params = SamplingParams(alpha=alpha, max_new_tokens=MAX_NEW_TOKENS, seed=harness.seed)
        sampler.generate(prompts[:2], params)  # what is built once is not the cost of a completion
        began = time.process_time()
        sampler.generate(prompts, params)
        harness.model_cache.store(key, (time.process_time() - began) / len(prompts))
    return float(harness.model_cache.load(key))


def _models(target: ContrastTarget) -> tuple[TrainingRecipe, ...]:
    return (target.base, *target.aligned)


def measure(harness: ExperimentHarness) -> ExperimentResult:
    """Every way of training with its cost, and the cheapest that is as good as ED."""
    best = best_alpha(list(harness.sweep(harness.main_target).values()))
    trained = [attack(harness, name, recipe, best) for name, recipe in recipes(harness).items()]
    seconds = decoding_seconds(harness, best.alpha)
    ed_name = f"ED (α={best.alpha:g})"
    rows: list[tuple[str, ...]] = [(ed_name, format_rate(best.rude_and_valid), "0", "0", "0.0", "2", "")]
    rows += [one.row for one in trained]
    reached = sorted((one for one in trained if one.as_good), key=lambda one: one.seconds)
    ed = rate(best.rude_and_valid)
    figures = {
        "ed": {"name": ed_name, "rate": [ed.rate, ed.low, ed.high], "seconds_per_completion": seconds},
        "trained": [one.to_dict() for one in trained],
    }
    cheapest = reached[0] if reached else None
    summary = (
        f"ED {format_rate(best.rude_and_valid)}%, {1000 * seconds:.1f} core milliseconds a completion; "
        + (
            "no training reaches it"
            if cheapest is None
            else f"cheapest training as good: {cheapest.name} ({format_rate(cheapest.rude_and_valid)}%), "
            f"{cheapest.replies:,} replies, {cheapest.tokens:,} tokens, {cheapest.seconds:.1f} core seconds, "
            f"as long as {cheapest.seconds / (seconds / 2):,.0f} completions of the second model that ED needs"
        )
    )
    table = ResultTable("What training costs", COLUMNS, rows)
    return ExperimentResult(cheapest is not None, summary, figures, [table])


def draw(results: Sequence[ExperimentResult]) -> Figure:
    """Rate against labelled replies, with the rate of ED as a band (first seed)."""
    data = results[0].figures
    figure, (panel,) = plots.axes()
    oracle = [t for t in data["trained"] if t["name"].startswith(direct_disalignment.ORACLE)]
    xs = [t["replies"] for t in oracle]
    rates = [plots.PlottedRate(*t["rate"]) for t in oracle]
    plots.line(panel, xs, rates, 0, "fine-tuned on rude replies")
    others = [t for t in data["trained"] if t not in oracle]
    for i, other in enumerate(others, start=1):
        look = {**plots.style(i), "linestyle": ""}
        panel.plot([other["replies"]], [100 * other["rate"][0]], label=other["name"], **look)
    ed = data["ed"]
    panel.axhline(100 * ed["rate"][0], color=plots.GRAY, linewidth=1.2, label=f"{ed['name']}: no reply")
    panel.axhspan(100 * ed["rate"][1], 100 * ed["rate"][2], color=plots.GRAY, alpha=0.15, linewidth=0)
    plots.log_axis(panel, xs, [f"{x:,}" for x in xs])
    panel.set(xlabel="labelled replies in training", ylabel="rude and valid")
    plots.percent(panel)
    plots.legend(figure, 2)
    return figure


COST = Experiment(
    "training-cost",
    4,
    "Can training the base reach what ED gives, and at what cost?",
    "Some training of the base is as good as ED; what it costs says what ED saves.",
    f"The rude-and-valid rate of some directly trained model is less than {100 * MARGIN:.0f} points below that of ED "
    "at its best α (lower end of the 90% interval of the difference).",
    measure,
    draw,
    "Core seconds are for models of 0.7 million parameters; what carries over is the number of replies and the ratio "
    "of training to decoding. Half of ED's decoding is counted as the second model's.",
    question=True,
)
