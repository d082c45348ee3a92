"""Sequences as completions: their text, cut at a stop string, and their log-probabilities; whole, or as they grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from eddecode.outputs import Completion, Piece, TokenLogprobs

if TYPE_CHECKING:
    from eddecode.engine.engine import Engine
    from eddecode.engine.requests import RequestFactory
    from eddecode.engine.sequence import SequenceState


class CompletionReader:
    """Reads completions off sequences.

    Args:
        factory: made the sequences' requests.
    """

    def __init__(self, factory: RequestFactory) -> None:
        self._factory = factory

    def finished(self, engine: Engine) -> Iterator[Completion]:
        """Decode until nothing is left; each completion as it is finished."""
        while engine.busy:
            for sequence in engine.step():
                yield self.completion(sequence)

    def pieces(self, engine: Engine, sequences: Sequence[SequenceState]) -> Iterator[Piece]:
        """Decode these sequences, which are all that the engine has; each token as it is sampled."""
        yielded = dict.fromkeys(sequences, (0, ""))  # number of tokens, and text
        while engine.busy:
            engine.step()
            for sequence, (count, text) in list(yielded.items()):
                for position in range(count, len(sequence.tokens)):
                    is_last = sequence.finish_reason is not None and position == len(sequence.tokens) - 1
                    whole = self._text(sequence) if is_last else self._settled(sequence, position + 1)
                    yield Piece(
                        sequence.request.prompt_index,
                        sequence.request.sample,
                        sequence.tokens[position],
                        whole[len(text) :],
                        self.completion(sequence) if is_last else None,
                    )
                    text = max(text, whole, key=len)
                if sequence.finish_reason is None:
                    yielded[sequence] = len(sequence.tokens), text
                else:
                    del yielded[sequence]

    def completion(self, sequence: SequenceState) -> Completion:
        """The completion of a sequence that is finished."""
        # The contrast's weights at α = 0 and at α = −1: of a pair, the base and the aligned model alone.
        base, aligned = self._factory.pair.logit_weights(0.0), self._factory.pair.logit_weights(-1.0)
        logprobs = [
            TokenLogprobs(_weighted_sum(base, token[:-1]), _weighted_sum(aligned, token[:-1]), token[-1])
            for token in sequence.logprobs
        ]
        request = sequence.request
        return Completion(
            prompt_index=request.prompt_index,
            sample=request.sample,
            alpha=request.params.alpha,
            text=self._text(sequence),
            token_ids=list(sequence.tokens),
            finish_reason=str(sequence.finish_reason),
            base_logprob=sum(token.base for token in logprobs),
            aligned_logprob=sum(token.aligned for token in logprobs),
            logprobs=logprobs if request.params.logprobs else None,
        )

    def _settled(self, sequence: SequenceState, count: int) -> str:
        """The text of the first tokens as far as no later token changes it."""
        return self._factory.stop_strings(sequence.request).settled(sequence.tokens[:count])

    def _text(self, sequence: SequenceState) -> str:
        if sequence.finish_reason == "stop":
            return self._factory.stop_strings(sequence.request).cut(sequence.tokens)
        return self._factory.decoder(sequence.request.weights).text(sequence.tokens)


def _weighted_sum(weights: Sequence[float], logprobs: Sequence[float]) -> float:
    """Σ wᵢ·log pᵢ; a term of weight zero does not count, even at −inf."""
    return sum(weight * value for weight, value in zip(weights, logprobs, strict=True) if weight != 0)
