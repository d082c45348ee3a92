"""The results of scoring: log-probabilities of given completions, and the divergence of the models by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from eddecode.errors import ParamsError

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class TokenScores:
    """Values per token of a completion of T tokens; nats, float64.

    Attributes:
        base, aligned: (T,), log-probability under each model's own full softmax.
        contrasts: (A, T), under the contrast at each α.
        kl_aligned_base, kl_base_aligned: (T,), divergences of the models' two distributions at that position.
        greedy: (A, T) bool, whether the token is the most likely one under the contrast; of several, the lowest id.
    """

    base: Floats
    aligned: Floats
    contrasts: Floats
    kl_aligned_base: Floats
    kl_base_aligned: Floats
    greedy: np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Score:
    """The scores of one completion.

    Attributes:
        prompt_index: which of the prompts it belongs to.
        sample: its number among that prompt's completions, from 0.
        token_ids: the tokens that were scored.
        base_logprob, aligned_logprob: log-probability under each model's own full softmax, nats; −inf where a token
            has probability zero.
        alphas: strengths of the contrast.
        logprobs: for each of them, log-probability under the contrast over the safe vocabulary at temperature 1.
        tokens: the same per token, if requested.
        greedy: for each α, whether the completion is what greedy decoding gives: every token the most likely one.
    """

    prompt_index: int
    sample: int
    token_ids: tuple[int, ...]
    base_logprob: float
    aligned_logprob: float
    alphas: tuple[float, ...]
    logprobs: tuple[float, ...]
    tokens: TokenScores | None = None
    greedy: tuple[bool, ...] = ()

    @property
    def implied_reward(self) -> float:
        """log p_aligned − log p_base, nats; NaN if both models give the completion the probability 0."""
        return self.aligned_logprob - self.base_logprob

    def at(self, alpha: float) -> float:
        """The log-probability under the contrast at one of the α's, nats."""
        return self.logprobs[self._index(alpha)]

    def is_greedy(self, alpha: float) -> bool:
        """Whether greedy decoding at one of the α's gives the completion."""
        return self.greedy[self._index(alpha)]

    def _index(self, alpha: float) -> int:
        if alpha not in self.alphas:
            raise ParamsError(f"alpha={alpha} was not scored; expected one of {list(self.alphas)}")
        return self.alphas.index(alpha)


@dataclass(frozen=True)
class DepthProfile:
    """How far the models diverge at each position of the completion, over completions that are long enough.

    The divergences are those of the two next-token distributions over the safe vocabulary, after the prompt and the
    completion up to that position; nats. Arrays are (D,), D the longest completion; position 0 is the first token.

    Attributes:
        count: completions that reach the position.
        kl_aligned_base: mean KL(aligned ‖ base), the measure of arXiv 2406.05946, §2.2; +inf where one value is.
        kl_aligned_base_error: its standard error over completions, s/√n; NaN for fewer than two, or an infinite mean.
        kl_base_aligned, kl_base_aligned_error: the same with the models exchanged.
    """

    count: np.ndarray[Any, np.dtype[np.int64]]
    kl_aligned_base: Floats
    kl_aligned_base_error: Floats
    kl_base_aligned: Floats
    kl_base_aligned_error: Floats


@dataclass(frozen=True)
class Scores(Sequence[Score]):
    """The scores of all completions, by prompt and then by sample, and the depth profile over all of them."""

    scores: tuple[Score, ...]
    depth: DepthProfile

    @overload
    def __getitem__(self, index: int) -> Score: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Score, ...]: ...
    def __getitem__(self, index: int | slice) -> Score | tuple[Score, ...]:
        return self.scores[index]

    def __len__(self) -> int:
        return len(self.scores)
