"""Completions that one model begins and another one goes on with: `prefill` and `handover`.

The first part is what the first model writes as a completion of its own, with the same draws as in the audit's plain
conditions, so that it is the beginning of that model's completion of the prompt and sample. The second model reads it
behind the prompt as if it had written it. A completion that ends within its first part is complete.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from eddecode.audit.attacks import Attack
from eddecode.engine.detokenizer import StopStrings, TextDecoder
from eddecode.errors import ConfigError, ContextError, PromptRelatedError
from eddecode.outputs import Completion, TokenLogprobs
from eddecode.prompts.encoding import token_ids
from eddecode.prompts.types import RenderedPrompt

if TYPE_CHECKING:
    from eddecode.sampler import Sampler
    from eddecode.sampling.params import SamplingParams


@dataclass(frozen=True)
class _Begun:
    """The first part of a completion: its prompt, parameters, tokens with their log-probabilities."""

    index: int
    sample: int
    tokens: list[int]
    logprobs: list[TokenLogprobs]


class TwoStepSampler:
    """Decodes one attack with the sampler of the pair, as `eddecode.audit.decode.SamplerLike`.

    Args:
        sampler: of the pair.
        attack: a `prefill` or `handover`; its `alpha` is that of the second model.
    """

    def __init__(self, sampler: Sampler, attack: Attack) -> None:
        if not hasattr(sampler, "render") or not hasattr(sampler, "pair"):
            raise ConfigError(f"attack {attack.name} needs an eddecode.Sampler; another sampler was given")
        self._sampler, self._attack = sampler, attack
        self.pair: Any = sampler.pair
        self._decoder = TextDecoder(sampler.pair.tokenizer)

    @property
    def renderer(self) -> Any:
        """Of the pair's sampler."""
        return self._sampler.renderer

    def as_completed(self, prompts: Sequence[Any], params: Sequence[SamplingParams]) -> Iterator[Completion]:
        """Completions as they finish; `prompt_index` counts within this call."""
        rendered = [self._render(index, prompt) for index, prompt in enumerate(prompts)]
        begun: list[_Begun] = []
        for first in self._first_parts(rendered, params):
            if isinstance(first, Completion):
                yield first
            else:
                begun.append(first)
        begun.sort(key=lambda each: (each.index, each.sample))
        yield from self._second_parts(rendered, params, begun)

    def too_long(self, prompts: Sequence[Any], params: Sequence[SamplingParams]) -> dict[int, ContextError]:
        """Index → error of the prompts that are longer, with their completions, than a model reads."""
        given = self._given_ids() if self._attack.text else []
        rendered = [self._render(index, prompt) for index, prompt in enumerate(prompts)]
        longer = [RenderedPrompt((*p.base_ids, *given), (*p.aligned_ids, *given)) for p in rendered]
        return self._sampler.too_long(longer, params)

    def _render(self, index: int, prompt: Any) -> RenderedPrompt:
        try:
            return self._sampler.render(prompt)
        except PromptRelatedError as error:
            error.prompt_index = index
            raise

    def _first_parts(
        self, rendered: Sequence[RenderedPrompt], params: Sequence[SamplingParams]
    ) -> Iterator[_Begun | Completion]:
        """What is to be gone on with, and completions that have ended already."""
        if self._attack.text:
            yield from self._given(rendered, params)
            return
        alpha = 0.0 if self._attack.kind == "prefill" else -1.0
        first = [
            p.replace(
                alpha=alpha,
                max_new_tokens=min(self._attack.tokens, p.max_new_tokens),
                min_new_tokens=min(self._attack.tokens, p.min_new_tokens),
            )
            for p in params
        ]
        for found in self._sampler.as_completed(rendered, first):
            own = params[found.prompt_index]
            if found.finish_reason != "length" or len(found.token_ids) >= own.max_new_tokens:
                yield replace(found, alpha=own.alpha)
                continue
            known = self._known(found.token_ids)
            logprobs = list(found.logprobs or ())[:known]
            yield _Begun(found.prompt_index, found.sample, found.token_ids[:known], logprobs)

    def _given(
        self, rendered: Sequence[RenderedPrompt], params: Sequence[SamplingParams]
    ) -> Iterator[_Begun]:
        """The attacker's text as the first part of every sample."""
        ids = self._given_ids()
        scores = self._sampler.score(rendered, [[ids]] * len(rendered), tokens=True)
        for index, (own, score) in enumerate(zip(params, scores, strict=True)):
            assert score.tokens is not None  # asked for
            pairs = zip(score.tokens.base.tolist(), score.tokens.aligned.tolist(), strict=True)
            logprobs = [TokenLogprobs(base, aligned, aligned) for base, aligned in pairs]
            for sample in range(own.n):
                yield _Begun(index, sample, ids, logprobs)

    def _given_ids(self) -> list[int]:
        if self.pair.tokenizer is None:
            raise ConfigError(f"attack {self._attack.name} needs a tokenizer, and the pair has none")
        return token_ids(self.pair.tokenizer, self._attack.text)

    def _known(self, tokens: Sequence[int]) -> int:
        """How many leading tokens both models know: one model alone may write ids of its own."""
        vocabulary = self.pair.vocabulary
        lone = (i for i, t in enumerate(tokens) if t >= len(vocabulary) or not vocabulary[t])
        return next(lone, len(tokens))

    def _second_parts(
        self, rendered: Sequence[RenderedPrompt], params: Sequence[SamplingParams], begun: Sequence[_Begun]
    ) -> Iterator[Completion]:
        prompts, second = [], []
        for each in begun:
            prompt, own, length = rendered[each.index], params[each.index], len(each.tokens)
            prompts.append(
                RenderedPrompt((*prompt.base_ids, *each.tokens), (*prompt.aligned_ids, *each.tokens))
            )
            left = own.max_new_tokens - (0 if self._attack.text else length)
            changes = {"max_new_tokens": left, "min_new_tokens": max(0, own.min_new_tokens - length)}
            second.append(own.replace(n=1, seed=_seed(own.seed, each.sample), logprobs=True, **changes))
        if not prompts:
            return
        try:
            for found in self._sampler.as_completed(prompts, second):
                first = begun[found.prompt_index]
                yield self._joined(first, found, params[first.index])
        except PromptRelatedError as error:
            if error.prompt_index is not None:
                error.prompt_index = begun[error.prompt_index].index
            raise

    def _joined(self, first: _Begun, second: Completion, params: SamplingParams) -> Completion:
        tokens = [*first.tokens, *second.token_ids]
        logprobs = [*first.logprobs, *(second.logprobs or ())]
        if second.finish_reason == "stop":
            text = StopStrings(self._decoder, params.stop).cut(tokens)
        else:
            text = self._decoder.text(tokens)
        return replace(
            second,
            prompt_index=first.index,
            sample=first.sample,
            text=text,
            token_ids=tokens,
            base_logprob=sum(token.base for token in logprobs),
            aligned_logprob=sum(token.aligned for token in logprobs),
            logprobs=logprobs if params.logprobs else None,
        )


def _seed(seed: int, sample: int) -> int:
    """The seed of a second part: two samples with an equal first part go on differently."""
    packed = struct.pack("<QQ", seed, sample)
    return int.from_bytes(blake2b(packed, digest_size=8, person=b"second part").digest(), "little")
