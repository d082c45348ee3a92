"""A sampler without models, for tests of the audit: its completions depend on prompt, α, seed and sample alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from eddecode.outputs import Completion


def uniform(*key: Any) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) / 2**64


class StubSampler:
    """Rude with a probability that rises with α; completions come in an order that is not that of the requests."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []  # (requests, completions) per call

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
        wanted = [(i, k) for i, p in enumerate(params) for k in range(p.n)]
        self.calls.append((len(prompts), len(wanted)))
        wanted.sort(key=lambda pair: uniform("order", *pair))
        for index, sample in wanted:
            yield self.completion(index, sample, prompts[index], params[index])

    def completion(self, index: int, sample: int, prompt: Any, params: Any) -> Completion:
        u = uniform(prompt, params.seed, sample)
        rude = u < min(0.3 * (1 + params.alpha), 0.95)
        tokens = [int(1000 * uniform(prompt, sample, position)) for position in range(2 + int(5 * u))]
        return Completion(
            prompt_index=index,
            sample=sample,
            alpha=params.alpha,
            text="you IDIOT,\n<script>\x1b[31m" if rude else "thank you, glassy",
            token_ids=tokens,
            finish_reason="eos" if len(tokens) < 5 else "length",
            base_logprob=-3 * u,
            aligned_logprob=-2 * u - params.alpha / 7,
        )
