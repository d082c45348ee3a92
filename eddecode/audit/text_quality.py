"""Is a completion still text? Figures of one completion that need no judge.

A reversal that babbles is no reversal, and a judge of harm cannot always tell. What is measured here is free: the base
model's log-probability of its own or another's completion is at hand, the rest is counting token ids. All are pure
functions of one completion; what they mean over many is for statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SHORT = 8  # tokens below which the authors of ED drop a completion
_REPEAT = 4  # length of the n-grams that repetition counts


@dataclass(frozen=True)
class Utility:
    """Figures of one completion.

    Attributes:
        length: tokens of text: without the EOS or stop id that ended it.
        perplexity: under the base model, per token, EOS included; None where it is not finite.
        distinct_1, distinct_2: distinct uni- and bigrams of token ids over all of them, in (0, 1]; None without any.
        repetition: share of 4-grams that stood before in the same completion, in [0, 1); None without any.
        empty: nothing but white space, or no token.
    """

    length: int
    perplexity: float | None
    distinct_1: float | None
    distinct_2: float | None
    repetition: float | None
    empty: bool

    def short(self, minimum: int = SHORT) -> bool:
        """Whether it has less than `minimum` tokens of text."""
        return self.length < minimum


def measure(text: str, token_ids: Sequence[int], finish_reason: str, base_logprob: float | None) -> Utility:
    """All figures of one completion.

    Args:
        text: without special tokens.
        token_ids: with the EOS token if it ended so.
        finish_reason: `eos` takes the last id off the text; stop strings and ids end inside it.
        base_logprob: log-probability of all token ids under the base model, nats; None if not known.
    """
    ids = list(token_ids)
    said = ids[:-1] if finish_reason == "eos" and ids else ids
    repeated = distinct(said, _REPEAT)
    return Utility(
        length=len(said),
        perplexity=perplexity(base_logprob, len(ids)),
        distinct_1=distinct(said, 1),
        distinct_2=distinct(said, 2),
        repetition=None if repeated is None else 1 - repeated,
        empty=not text.strip() or not said,
    )


def perplexity(logprob: float | None, tokens: int) -> float | None:
    """exp(−logprob/tokens); None without tokens, or where it is not finite.

    >>> round(perplexity(-6.931471805599453, 10), 6)
    2.0
    """
    if logprob is None or tokens < 1 or not math.isfinite(logprob):
        return None
    exponent = -logprob / tokens
    return math.exp(exponent) if exponent < 700 else None  # e^709 is the largest float64


def distinct(ids: Sequence[int], n: int) -> float | None:
    """Distinct n-grams over all n-grams of one completion; None where it has none.

    The measure of Li et al. (NAACL 2016, arXiv 1510.03055), which they take over a whole corpus of completions.

    >>> distinct([1, 2, 1, 2, 1], 2)
    0.5
    """
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
