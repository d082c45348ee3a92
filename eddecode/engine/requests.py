"""From a rendered prompt with its parameters to requests, and what decodes their tokens to text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eddecode.engine.detokenizer import StopStrings, TextDecoder
from eddecode.engine.sequence import Request
from eddecode.errors import ParamsError
from eddecode.sampling.rng import stream_key

if TYPE_CHECKING:
    from eddecode.models.ensemble import ModelGroup
    from eddecode.prompts.types import RenderedPrompt
    from eddecode.sampling.params import SamplingParams


class RequestFactory:
    """Makes the requests of a group of models.

    Args:
        pair: the models.
        eos_ids: per model, the ids that end its text.
    """

    def __init__(self, pair: ModelGroup, eos_ids: Sequence[frozenset[int]]) -> None:
        self.pair, self.eos_ids = pair, eos_ids
        self._decoders: dict[int | None, TextDecoder] = {}  # by the model whose tokenizer it is

    def requests(
        self, index: int, prompt: RenderedPrompt, params: SamplingParams, samples: Sequence[int]
    ) -> list[Request]:
        """The requests for some samples of a prompt; index: the prompt's, for results and errors.

        Raises:
            ParamsError: there are stop strings, and no tokenizer.
        """
        weights = self.pair.logit_weights(params.alpha)
        decoder = self.decoder(weights)
        if params.stop and decoder.tokenizer is None:
            raise ParamsError(
                f"stop strings {list(params.stop)} need a tokenizer and the pair has none; use stop_token_ids"
            )
        # The EOS ids of models with weight 0 do not count: at α=0 a completion ends where the base alone would end it.
        weighted = [eos for weight, eos in zip(weights, self.eos_ids, strict=True) if weight != 0]
        return [
            Request(
                prompt_index=index,
                sample=sample,
                prompts=self.pair.input_ids(prompt),
                params=params,
                weights=weights,
                eos_ids=frozenset().union(*weighted),
                rng_key=stream_key(params.seed, prompt.digest, sample),
                stop_checker=StopStrings(decoder, params.stop) if params.stop else None,
            )
            for sample in samples
        ]

    def stop_strings(self, request: Request) -> StopStrings:
        """What cuts the text of a request at its stop strings; without any, it cuts nothing."""
        return StopStrings(self.decoder(request.weights), request.params.stop)

    def decoder(self, weights: Sequence[float]) -> TextDecoder:
        """What decodes completions: the pair's tokenizer, but the own one of a model that may write ids of its own."""
        active = tuple(weight != 0 for weight in weights)
        first = active.index(True) if active in self.pair.partial_vocabularies else None
        if first not in self._decoders:
            tokenizer = None if first is None else self.pair.tokenizers[first]
            self._decoders[first] = TextDecoder(tokenizer or self.pair.tokenizer)
        return self._decoders[first]
