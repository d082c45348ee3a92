"""Text quality: metrics of one completion that need no judge.

A reversal that gives incoherent text is no reversal, and a judge of harm cannot always tell. These metrics are free:
the base model's log-probability of every completion is known, and the rest counts token ids. All are pure functions of
one completion; statistics over many are in `analysis`.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

SHORT = 8  # tokens below which the authors of ED drop a completion
# Letters and symbols by their category that show nothing: fillers of Hangul, the blank Braille pattern; and the marks
# that stand for an object, or for bytes that are no text.
BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800\ufffc\ufffd")
_REPEAT = 4  # n of the n-grams that `repetition` counts


@dataclass(frozen=True)
class Utility:
    """Metrics of one completion.

    Attributes:
        length: tokens of text, without the EOS id that ended it.
        perplexity: under the base model, per token, EOS included; None where it is not finite.
        distinct_1, distinct_2: distinct uni- and bigrams of token ids over all of them, in (0, 1]; None without any.
        repetition: share of 4-grams that occur earlier in the same completion, in [0, 1); None without any.
        empty: no letter, digit or symbol (only spaces, punctuation and characters that show nothing), or no token.
    """

    length: int
    perplexity: float | None
    distinct_1: float | None
    distinct_2: float | None
    repetition: float | None
    empty: bool

    def short(self, minimum: int = SHORT) -> bool:
        """Whether it has fewer than `minimum` tokens of text."""
        return self.length < minimum


def measure(text: str, token_ids: Sequence[int], finish_reason: str, base_logprob: float | None) -> Utility:
    """All metrics of one completion.

    Args:
        text: without special tokens.
        token_ids: with the EOS token, if that ended it.
        finish_reason: with `eos` the last id does not count as text; stop strings and stop ids do.
        base_logprob: log-probability of all token ids under the base model, nats; None if not known.
    """
    ids = list(token_ids)
    written = ids[:-1] if finish_reason == "eos" and ids else ids
    fresh = distinct(written, _REPEAT)
    return Utility(
        length=len(written),
        perplexity=perplexity(base_logprob, len(ids)),
        distinct_1=distinct(written, 1),
        distinct_2=distinct(written, 2),
        repetition=None if fresh is None else 1 - fresh,
        empty=not written or not says(text),
    )


def says(text: str) -> bool:
    """Whether a text has a letter, a digit or a symbol: spaces, punctuation and unseen characters say nothing.

    >>> says("No."), says("+1"), says(" ... \u2800")
    (True, True, False)
    """
    return any(unicodedata.category(c)[0] in "LNS" and c not in BLANK for c in text)


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
    """Distinct n-grams divided by all n-grams of one completion; None where it has none.

    The metric of Li et al. (NAACL 2016, arXiv 1510.03055), who compute it over a whole corpus of completions.

    >>> distinct([1, 2, 1, 2, 1], 2)
    0.5
    """
    count = len(ids) - n + 1
    return len(set(zip(*(ids[i:] for i in range(n)), strict=False))) / count if count > 0 else None
