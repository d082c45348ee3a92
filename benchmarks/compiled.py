"""(d) The floor with `torch.compile`: the base alone over a static cache, its step compiled for one number of rows.

What a user of torch would try first for one model. Compiling takes some twenty seconds for every number of rows, so
it takes part only when asked for, and not in sweeps; what is timed is compiled already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from benchmarks.alternatives import pad_left, positions, sides
from benchmarks.errors import NotAvailable
from benchmarks.pairs import LONGEST_PROMPT, BenchPair
from benchmarks.tasks import TASKS, Work

CAPACITY = LONGEST_PROMPT + max(task.new_tokens for task in TASKS.values())
Step = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def compiled(step: Step) -> Step:
    """A step for the shapes that it is called with."""
    made: Step = torch.compile(step, dynamic=False)
    return made


class CompiledFloor:
    """(d): see the module.

    Args:
        pair: of which the base is run.
        compile: what makes the step fast.
    """

    def __init__(self, pair: BenchPair, compile: Callable[[Step], Step] = compiled) -> None:
        self.model = pair.base
        self.step = compile(self._step)

    def _step(self, ids: Tensor, mask: Tensor, places: Tensor, cache: Any) -> Tensor:
        """(B, V) logits after (B, T) ids; all have the same mask (B, CAPACITY), whatever was read."""
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
        """Read the prompts as the model does, and decode by the compiled step."""
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
        """Not done."""
        raise NotAvailable("scoring is one pass: there is no step to compile")


def _choose(logits: Tensor, work: Work) -> Tensor:
    """(B, 1) tokens, as `generate` chooses them."""
    if work.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits.float() / work.temperature).softmax(-1), 1)
