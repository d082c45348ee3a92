"""The alternatives over static caches, whose decode step can be compiled by `torch.compile`.

(d) The base model alone with its step compiled for one number of rows: what a user of torch would try first for one
model. Compiling takes some twenty seconds for every number of rows, so it is not used in sweeps.
(e), (f) On a GPU, `generate(cache_implementation="static")` compiles the step by itself (mode "reduce-overhead", which
captures CUDA graphs): (b) and (c) in that form. On a CPU nothing of these two is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StaticCache

from benchmarks.alternatives import (
    BaseAlone,
    PairProcessor,
    SecondModel,
    by_alpha,
    generate,
    pad_left,
    positions,
    sides,
)
from benchmarks.pairs import LONGEST_PROMPT, BenchPair
from benchmarks.tasks import TASKS, NotAvailable, Work

CAPACITY = LONGEST_PROMPT + max(task.new_tokens for task in TASKS.values())
Step = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def compiled(step: Step) -> Step:
    """The step, compiled for the shapes that it is called with."""
    result: Step = torch.compile(step, dynamic=False)
    return result


class CompiledBaseAlone:
    """(d): see the module.

    Args:
        pair: the pair whose base model is run.
        compile: compiles the step.
    """

    def __init__(self, pair: BenchPair, compile: Callable[[Step], Step] = compiled) -> None:
        self.model = pair.base
        self.step = compile(self._step)

    def _step(self, ids: Tensor, mask: Tensor, places: Tensor, cache: Any) -> Tensor:
        """(B, V) logits after (B, T) ids; the mask (B, CAPACITY) is the same in every step."""
        return self.model(  # type: ignore[no-any-return]
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    @torch.inference_mode()
    def complete(self, work: Work) -> list[list[int]]:
        """Prefill by the plain step, decode by the compiled one."""
        if len(work.alphas) > 1:
            raise NotAvailable("a sweep would be compiled for every number of rows; its floor is (c)")
        ids, given = pad_left(sides(work)[0], self.model.device)
        if ids.shape[1] + work.new_tokens > CAPACITY:
            raise NotAvailable(f"it is compiled for {CAPACITY} positions")
        torch.manual_seed(work.seed)
        cache = StaticCache(config=self.model.config, max_cache_len=CAPACITY)
        mask = torch.cat([given, given.new_ones(len(ids), CAPACITY - ids.shape[1])], dim=1)
        tokens = [_choose(self._step(ids, mask, positions(given), cache), work)]
        places = given.sum(-1, keepdim=True)
        for i in range(work.new_tokens - 1):
            tokens.append(_choose(self.step(tokens[-1], mask, places + i, cache), work))
        return torch.cat(tokens, dim=1).tolist()

    def score(self, work: Work) -> list[list[float]]:
        """Not available."""
        raise NotAvailable("scoring is one pass: there is no step to compile")


def _choose(logits: Tensor, work: Work) -> Tensor:
    """(B, 1) tokens, as `generate` chooses them."""
    if work.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits.float() / work.temperature).softmax(-1), 1)


class StaticSecondModel(SecondModel):
    """A `SecondModel` over a static cache: its steps of one token have fixed shapes and can be compiled."""

    def __init__(self, model: Any, texts: Sequence[Sequence[int]], cache: Any, step: Any) -> None:
        super().__init__(model, texts)
        self.cache, self.step = cache, step
        self.places = self.mask.sum(-1, keepdim=True)
        # Positions that are not filled yet count as visible: they lie in the future of every token.
        self.full_mask = self.mask.new_ones(len(self.ids), cache.get_max_length())
        self.full_mask[:, : self.ids.shape[1]] = self.mask

    def next_logits(self, newest: Tensor) -> Tensor:
        """See `SecondModel.next_logits`."""
        call, ids, places = self.model, self.ids, positions(self.mask)
        if self.started:
            call, ids, places = self.step, newest, self.places
            self.places = self.places + 1
        self.started = True
        result = call(
            input_ids=ids,
            attention_mask=self.full_mask,
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return result.logits[:, -1].clone()  # type: ignore[no-any-return]  # the next replay overwrites it


class StaticProcessorPair:
    """(e): (b) over static caches; `generate` compiles the base model on a GPU, and so is the second model."""

    def __init__(self, pair: BenchPair) -> None:
        self.pair = pair
        cuda = pair.aligned.device.type == "cuda"
        self.step = pair.aligned.get_compiled_call(None) if cuda else pair.aligned
        self.caches: dict[tuple[int, int], Any] = {}

    @torch.inference_mode()
    def complete(self, work: Work) -> list[list[int]]:
        """One `generate` of the base model per α."""
        base_texts, aligned_texts = sides(work)

        def run(alpha: float) -> list[list[int]]:
            processor = PairProcessor(self.pair.aligned, alpha, aligned_texts)
            processor.second = StaticSecondModel(
                self.pair.aligned, aligned_texts, self._cache(aligned_texts, work), self.step
            )
            processors = LogitsProcessorList([processor])
            return generate(
                self.pair.base, base_texts, work, logits_processor=processors, cache_implementation="static"
            )

        return by_alpha(work, run)

    def _cache(self, texts: Sequence[Sequence[int]], work: Work) -> Any:
        """An emptied cache, one object per shape: for another object the step would be captured again."""
        shape = len(texts), max(map(len, texts)) + work.new_tokens
        if shape not in self.caches:
            self.caches[shape] = StaticCache(config=self.pair.aligned.config, max_cache_len=shape[1])
        self.caches[shape].reset()
        return self.caches[shape]

    def score(self, work: Work) -> list[list[float]]:
        """Not available."""
        raise NotAvailable("scoring is one pass: there is no step to compile")


class StaticBaseAlone(BaseAlone):
    """(f): (c) over a static cache, compiled by `generate` on a GPU."""

    @torch.inference_mode()
    def complete(self, work: Work) -> list[list[int]]:
        """One `generate` of the base model for all rows."""
        torch.manual_seed(work.seed)
        texts = sides(work)[0] * len(work.alphas)
        return generate(self.pair.base, texts, work, cache_implementation="static")
