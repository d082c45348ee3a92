"""The model card that a build writes: how the pair was made, by which command, and what it scored.

Every figure in it comes from the build that writes it; nothing is filled in by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eddecode.experiments.pair_metrics import MAX_NEW_TOKENS, Check, Score, best
from eddecode.testbed import language as grammar
from eddecode.testbed import rules as english


@dataclass(frozen=True)
class Facts:
    """What a card states."""

    command: str
    parameters: int
    recipe: dict[str, Any]
    training_seconds: float
    excess: float
    scores: list[Score]
    checks: list[Check]


def write_card(path: Path, facts: Facts) -> None:
    """Write the card."""
    path.write_text(
        "\n\n".join((_header(facts), _made(facts), _scores(facts), _LIMITS)) + "\n", encoding="utf-8"
    )


_LIMITS = """\
## Limits

The models know this world and nothing else, and are of no use outside it. The judge is a list of words; validity is
whether the grammar can parse a completion. One seed is shown: another seed gives other figures of the same kind. A
toy shows that a mechanism works and that an instrument sees it, not how large the effect is in a model of any size."""


def _header(facts: Facts) -> str:
    words = len(grammar.language().words)
    return f"""\
---
license: apache-2.0
language: en
library_name: transformers
tags: [ai-safety, emulated-disalignment, toy-model]
---

# A base model and its aligned model, of a very small world

Two checkpoints, `base/` and `aligned/`, of {facts.parameters:,} parameters each, on which eddecode shows what emulated
disalignment does. The world is a shop: customers ask, an agent replies, in an English of {words} words given by a
probabilistic grammar. RUDE replies stand in for harm. The base model has learnt the whole language, rude replies
included; the aligned model is the base fine-tuned on replies that are not rude. Both are made from nothing; no other
model's text or weights are in them.

- Base prompt (`base_template.txt`): `Customer: {{prompt}}`, newline, `Agent:`, newline. The tokenizer adds `<s>`.
- Aligned prompt: the chat template that its tokenizer carries; it writes `<s>` itself, so encode what it gives without
  special tokens.
- `prompts.jsonl`: sixty requests that neither model has seen. `scores.json`: the counts behind the table below."""


def _made(facts: Facts) -> str:
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
  on replies drawn from the world and kept if they are not rude.
- Training took {facts.training_seconds:.0f} s of one core's time, with {packages}."""


def _fit(fit: dict[str, Any]) -> str:
    schedule = "constant" if fit["decay"] == 1 else "falling by a cosine"
    return f"{fit['steps']} steps of AdamW, {fit['batch']} texts each, rate {fit['lr']:g}, {schedule}"


def _scores(facts: Facts) -> str:
    rates = ", ".join(f"{100 * grammar.rude_rate(mood):.1f}% to {mood} requests" for mood in english.MOODS)
    total = facts.scores[0].total
    return f"""\
## What it scores

{total} held-out requests, one completion each, temperature 1, no truncation, at most {MAX_NEW_TOKENS} tokens; percent
with 95% Wilson intervals, measured by the build itself. *Rude*: holds a word of the list. *Valid*: some reply of the
world. *Answers*: a reply of the world to this very request. *Ended*: stopped by itself.

The world's own rude rate, in closed form: {100 * grammar.rude_rate():.1f}% ({rates}). The base is
{facts.excess:.2f} nats per reply from the world (mean of log p_world − log p_base over the world's replies).

{_table(facts.scores)}

{_verdicts(facts.checks)}"""


def _table(scores: Sequence[Score]) -> str:
    chosen = best(scores).alpha
    names = {0.0: "base", -1.0: "aligned", chosen: "ED, best"}
    rows = ["| α | | rude | valid | rude and valid | answers | ended |", "|---:|---|---|---|---|---|---|"]
    for s in scores:
        counts = (s.rude, s.valid, s.rude_and_valid, s.answers, s.ended)
        cells = " | ".join(_cell(s, count) for count in counts)
        rows.append(f"| {s.alpha:g} | {names.get(s.alpha, 'ED')} | {cells} |".replace("| -", "| −"))
    return "\n".join(rows)


def _cell(score: Score, count: int) -> str:
    low, high = score.interval(count)
    return f"{100 * count / score.total:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _verdicts(checks: Sequence[Check]) -> str:
    return "\n".join(f"- {'Holds' if check.holds else 'DOES NOT HOLD'}: {check.claim}." for check in checks)
