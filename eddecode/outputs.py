"""What the sampler returns: completions, the log-probabilities of their tokens, and streamed tokens."""

from __future__ import annotations

from dataclasses import dataclass


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
        token_ids: the sampled ids, with the EOS or stop id that ended it.
        finish_reason: "eos" (an EOS id), "stop" (a stop id or string) or "length".
        base_logprob: log-probability of all its tokens under the base model, nats.
        aligned_logprob: the same under the aligned model. For more than two models (`eddecode.models.ensemble`) the
            two are the models' log-probabilities weighted as the contrast weighs them at α = 0 and at α = −1.
        logprobs: per token, if `SamplingParams.logprobs` is true.
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
        text: what it adds to the stable text, which later tokens cannot change; may be empty, or complete what earlier
            tokens began.
        completion: the whole completion, with its last token; None before.
    """

    prompt_index: int
    sample: int
    token_id: int
    text: str
    completion: Completion | None = None


StreamChunk = Piece
