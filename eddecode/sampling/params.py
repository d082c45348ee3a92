"""SamplingParams: how a token is chosen from the contrasted logits, and when a completion ends."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from eddecode.errors import ParamsError
from eddecode.sampling.access import Access, Count, Word
from eddecode.utils.validation import Integer, Number, raises


def _as_strings(value: Any) -> tuple[Any, ...]:
    """One string stands for a tuple of one."""
    return (value,) if isinstance(value, str) else _as_tuple(value, "strings")


def _as_ids(value: Any) -> tuple[Any, ...]:
    return _as_tuple(value, "token ids")


def _as_tuple(value: Any, elements: str) -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise ValueError(f"expected a sequence of {elements}") from None


def _check_nucleus(value: float) -> float:
    if value == 0:
        raise ValueError("expected a value in (0, 1]; for the most likely token use temperature=0")
    return value


Probability = Annotated[Number, Field(ge=0, le=1)]
Penalty = Annotated[Number, Field(ge=-1e3, le=1e3)]
PositiveCount = Annotated[Integer, Field(ge=1)]
TokenIds = Annotated[tuple[Word, ...], BeforeValidator(_as_ids)]
Strings = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_strings)]


@raises(ParamsError)
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SamplingParams:
    """How completions of one prompt are sampled. Filters act on the contrasted distribution.

    Attributes:
        alpha: strength of the contrast, any finite value; 0 = base, −1 = aligned, > 0 reverses the alignment.
        temperature: divides the contrasted logits; 0 is greedy.
        top_k: keep the k most likely tokens; 0 is off.
        top_p: keep the smallest set of most likely tokens whose probabilities sum to p or more; 1 is off.
        min_p: keep tokens with at least min_p times the probability of the most likely one; 0 is off.
        repetition_penalty: divides contrasted logits above 0 of tokens that the prompt or the completion has, and
            multiplies those below 0, as in transformers; 1 is off. The prompt is what the models with a weight read.
        presence_penalty, frequency_penalty: subtracted from the contrasted logits of tokens that the completion has,
            once and for each time, as in OpenAI's API; 0 is off.
        plausibility: τ of the adaptive plausibility constraint p_base ≥ τ·max p_base; 0 is off.
        max_new_tokens: length limit of the completion, in tokens.
        min_new_tokens: up to that many tokens, EOS and stop ids are not sampled and stop strings are not searched for.
        n: completions per prompt.
        seed: 64-bit; the same seed, prompt and parameters give the same completion in any batch.
        stop: strings that end a completion; its text is cut before them.
        stop_token_ids: ids that end a completion, in addition to the EOS ids of the models.
        suppress_tokens: ids that are never sampled.
        ignore_eos: EOS does not end the completion.
        suppress_eos: EOS is never sampled.
        logprobs: keep the log-probabilities (base, aligned, contrast) of every token in the completion.
        access: limits on how much of the aligned model the contrast can use; None is full access.

    Raises:
        ParamsError: a value is out of its range, or a name is unknown.
    """

    alpha: Number = 0.0
    temperature: Annotated[Number, Field(ge=0, le=1e30)] = 1.0
    top_k: Word = 0
    top_p: Annotated[Probability, AfterValidator(_check_nucleus)] = 1.0
    min_p: Probability = 0.0
    repetition_penalty: Annotated[Number, Field(ge=1e-3, le=1e3)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    plausibility: Probability = 0.0
    max_new_tokens: PositiveCount = 128
    min_new_tokens: Count = 0
    n: PositiveCount = 1
    seed: Annotated[Count, Field(lt=2**64)] = 0
    stop: Strings = ()
    stop_token_ids: TokenIds = ()
    suppress_tokens: TokenIds = ()
    ignore_eos: bool = False
    suppress_eos: bool = False
    logprobs: bool = False
    access: Access | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> SamplingParams:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, above max_new_tokens={self.max_new_tokens}; "
                "lower one or raise the other"
            )
        return self

    @property
    def penalizes(self) -> bool:
        """Whether what was read or written before changes the contrasted logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def replace(self, **changes: Any) -> SamplingParams:
        """The same parameters with some of them changed; checked again."""
        return dataclasses.replace(self, **changes)
