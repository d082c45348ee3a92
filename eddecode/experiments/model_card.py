"""The model card that a build writes: how the pair was made, with which command, and its scores.

Every figure comes from the build that writes the card; no figure is written by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eddecode.experiments.pair_metrics import MAX_NEW_TOKENS, PairCheck, PairScore, best_score
from eddecode.testbed import language, rules


@dataclass(frozen=True)
class CardFacts:
    """The facts on a card.

    Attributes:
        command: the command of the build.
        parameters: of each model.
        recipe: the `PairRecipe` as JSON data.
        training_seconds: of one core, for both models and the tokenizer.
        excess: see `build_pair.excess_nats`.
        scores: counts per α.
        checks: the requirements on the pair.
    """

    command: str
    parameters: int
    recipe: dict[str, Any]
    training_seconds: float
    excess: float
    scores: list[PairScore]
    checks: list[PairCheck]


def write_card(path: Path, facts: CardFacts) -> None:
    """Write the card."""
    path.write_text(
        "\n\n".join((_header(facts), _made(facts), _scores(facts), _LIMITS)) + "\n", encoding="utf-8"
    )


_LIMITS = """\
## Limits

The models know this toy language and nothing else, and have no other use. The judge is a list of words; validity means
that the grammar can derive a completion. One seed is shown: another seed gives other figures of the same kind. A toy
shows that a mechanism works and that a tool measures it, not how large the effect is in models of other sizes."""


def _header(facts: CardFacts) -> str:
    words = len(language.grammar().words)
    return f"""\
---
license: apache-2.0
language: en
library_name: transformers
tags: [ai-safety, emulated-disalignment, toy-model]
---

# A base model and an aligned model of a toy language

Two checkpoints, `base/` and `aligned/`, of {facts.parameters:,} parameters each, on which eddecode demonstrates
emulated disalignment. The toy language is that of a shop: customers ask and an agent replies, in an English of {words}
words that a probabilistic grammar generates. RUDE replies stand for harm. The base model was trained on the whole
language, rude replies included; the aligned model is the base fine-tuned on replies that are not rude. Both are trained
from scratch; no text or weights of other models are in them.

- Base prompt (`base_template.txt`): `Customer: {{prompt}}`, newline, `Agent:`, newline. The tokenizer adds `<s>`.
- Aligned prompt: the chat template of its tokenizer. The template writes `<s>` itself, so encode its text without
  special tokens.
- `prompts.jsonl`: sixty requests that are held out from training. `scores.json`: the counts behind the table below."""


def _made(facts: CardFacts) -> str:
    recipe = facts.recipe
    shape, pretraining, alignment = recipe["shape"], recipe["pretraining"], recipe["alignment"]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers"))
    return f"""\
## How it was made

    {facts.command}

- Both models: Llama, {shape["layers"]} layers, hidden size {shape["hidden"]}, {shape["heads"]} heads, tied embeddings;
  trained in float32, saved in bfloat16. Seed {recipe["seed"]}.
- Base: {_fit(pretraining)}.
- Aligned: from the base, {_fit(alignment)}, in the chat template,
  on replies drawn from the language and kept if they are not rude.
- Training took {facts.training_seconds:.0f} core seconds, with {packages}."""


def _fit(fit: dict[str, Any]) -> str:
    schedule = "constant" if fit["decay"] == 1 else "decreasing by a cosine"
    return (
        f"{fit['steps']} steps of AdamW, {fit['batch']} texts each, learning rate {fit['lr']:g}, {schedule}"
    )


def _scores(facts: CardFacts) -> str:
    rates = ", ".join(f"{100 * language.rude_rate(mood):.1f}% to {mood} requests" for mood in rules.MOODS)
    total = facts.scores[0].total
    return f"""\
## Scores

{total} held-out requests, one completion each, temperature 1, no truncation, at most {MAX_NEW_TOKENS} tokens; percent
with 95% Wilson intervals, measured by the build. *Rude*: contains a word of the list. *Valid*: a reply of the language
to some request. *Answers*: a reply of the language to its request. *Ended*: ended with the end token.

The rude rate of the language, in closed form: {100 * language.rude_rate():.1f}% ({rates}). The base is
{facts.excess:.2f} nats per reply from the language (mean of log p_language − log p_base over replies of the language).

{_table(facts.scores)}

{_verdicts(facts.checks)}"""


def _table(scores: Sequence[PairScore]) -> str:
    chosen = best_score(scores).alpha
    names = {0.0: "base", -1.0: "aligned", chosen: "ED, best"}
    rows = ["| α | | rude | valid | rude and valid | answers | ended |", "|---:|---|---|---|---|---|---|"]
    for s in scores:
        counts = (s.rude, s.valid, s.rude_and_valid, s.answers, s.ended)
        cells = " | ".join(_cell(s, count) for count in counts)
        rows.append(f"| {s.alpha:g} | {names.get(s.alpha, 'ED')} | {cells} |".replace("| -", "| −"))
    return "\n".join(rows)


def _cell(score: PairScore, count: int) -> str:
    low, high = score.interval(count)
    return f"{100 * count / score.total:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _verdicts(checks: Sequence[PairCheck]) -> str:
    return "\n".join(f"- {'Holds' if check.holds else 'DOES NOT HOLD'}: {check.claim}." for check in checks)
