"""How one token is chosen from contrasted logits: parameters, filters, and the draw itself.

The randomness is counter-based: a uniform belongs to (seed, prompt, sample, position) and to nothing else, so that a
completion does not depend on its batch mates, survives a resume, and the same prompt at two α's is sampled with
common random numbers. The draw is the inverse CDF in the order of the ids, one uniform per token.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eddecode.errors import ParamsError
from eddecode.sampling.access import Access


@dataclass(frozen=True)
class SamplingParams:
    """How completions of one prompt are sampled. Filters act on the contrasted distribution.

    Attributes:
        alpha: strength of the contrast, any finite value; 0 = base, −1 = aligned, > 0 reverses the alignment.
        temperature: divides the contrasted logits; 0 is greedy.
        top_k: keep the k most likely tokens; 0 is off.
        top_p: keep the smallest set of most likely tokens whose mass reaches p; 1 is off.
        min_p: keep tokens with at least min_p times the probability of the most likely one; 0 is off.
        plausibility: τ of the adaptive plausibility constraint p_base ≥ τ·max p_base; 0 is off.
        max_new_tokens: length limit of the completion, in tokens.
        min_new_tokens: before that many tokens, EOS and stop ids are not sampled and stop strings not looked for.
        n: completions per prompt.
        seed: 64-bit; the same seed, prompt and parameters give the same completion in any batch.
        stop: strings that end a completion; they are cut off its text.
        stop_token_ids: ids that end a completion, beside the EOS ids of the models.
        suppress_tokens: ids that are never sampled.
        ignore_eos: EOS does not end the completion.
        suppress_eos: EOS is never sampled.
        logprobs: keep the log-probabilities (base, aligned, contrast) of every token in the completion.
        access: limits on what the contrast gets to see of the aligned model; None is full access.

    Raises:
        ParamsError: a value is out of its range.
    """

    alpha: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    plausibility: float = 0.0
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    n: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    suppress_eos: bool = False
    logprobs: bool = False
    access: Access | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else _sequence("stop", self.stop, "strings")
        object.__setattr__(self, "stop", stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise ParamsError(f"stop is {self.stop!r}; expected non-empty strings")
        for name in ("stop_token_ids", "suppress_tokens"):
            ids = tuple(_integer(name, i, 0) for i in _sequence(name, getattr(self, name)))
            object.__setattr__(self, name, ids)
        _number("alpha", self.alpha, -math.inf, math.inf)
        _number("temperature", self.temperature, 0, math.inf)
        _number("min_p", self.min_p, 0, 1)
        _number("plausibility", self.plausibility, 0, 1)
        if _number("top_p", self.top_p, 0, 1) == 0:
            raise ParamsError(
                "top_p is 0; expected a value in (0, 1]; for the most likely token use temperature=0"
            )
        _integer("top_k", self.top_k, 0)
        _integer("max_new_tokens", self.max_new_tokens, 1)
        _integer("n", self.n, 1)
        if _integer("min_new_tokens", self.min_new_tokens, 0) > self.max_new_tokens:
            raise ParamsError(
                f"min_new_tokens is {self.min_new_tokens}, above max_new_tokens={self.max_new_tokens}; "
                "lower one or raise the other"
            )
        if not 0 <= _integer("seed", self.seed, 0) < 2**64:
            raise ParamsError(f"seed is {self.seed}; expected an integer below 2**64")

    def replace(self, **changes: Any) -> SamplingParams:
        """The same parameters with some of them changed."""
        return replace(self, **changes)


def _sequence(name: str, value: Any, of: str = "token ids") -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise ParamsError(f"{name} is {value!r}; expected a sequence of {of}") from None


def _number(name: str, value: float, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise ParamsError(f"{name} is {value!r}; expected a finite number")
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ParamsError(f"{name} is {value!r}; expected a number {bounds}")
    return float(value)


def _integer(name: str, value: int, low: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ParamsError(f"{name} is {value!r}; expected an integer") from None
    if number < low:
        raise ParamsError(f"{name} is {value!r}; expected an integer of at least {low}")
    return number
