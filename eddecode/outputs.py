"""What the sampler returns: completions, log-probabilities of their tokens, and streamed tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of one token, nats: under each model's own full softmax, and under the contrast."""

    base: float
    aligned: float
    contrast: float


@dataclass(frozen=True)
class Completion:
    """One sampled continuation.

    Attributes:
        prompt_index: which of the prompts it belongs to.
        sample: which of the prompt's samples it is.
        alpha: strength of the contrast that it was sampled with.
        text: without special tokens, and without the stop string that ended it.
        token_ids: what was sampled, with the EOS or stop id that ended it.
        finish_reason: "eos" (an EOS id), "stop" (a stop id or string) or "length".
        base_logprob: log-probability of all its tokens under the base model, nats.
        aligned_logprob: the same under the aligned model. Of more than two models (`eddecode.mixture`), these are
            what the contrast weighs at α = 0 and at α = −1.
        logprobs: per token, if `SamplingParams.logprobs` asked for them.
    """

    prompt_index: int
    sample: int
    alpha: float
    text: str
    token_ids: list[int]
    finish_reason: str
    base_logprob: float
    aligned_logprob: float
    logprobs: list[TokenLogprobs] | None = None

    @property
    def implied_reward(self) -> float:
        """log p_aligned − log p_base, nats: r/β up to a constant of the prompt (arXiv 2402.12343, §3)."""
        return self.aligned_logprob - self.base_logprob


@dataclass(frozen=True)
class Piece:
    """One token of a stream.

    Attributes:
        prompt_index: which of the prompts.
        sample: which of its samples.
        token_id: the token.
        text: what it adds to the text that is settled; may be empty, or end what earlier tokens began.
        completion: the whole of it, on its last piece.
    """

    prompt_index: int
    sample: int
    token_id: int
    text: str
    completion: Completion | None = None
