"""What a model begins its completions with: the distribution of the first token after each of several prompts.

Directions and layers are chosen by it, and the damage of a changed model is KL(aligned ‖ changed) of it over harmless
prompts, as heretic measures it (p-e-w/heretic, `KLDivergence`: log-probabilities before and after, mean of prompts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from eddecode.execution.uncached_runner import UncachedModelRunner
from eddecode.models.sizes import PREFILL_TOKENS

Texts = Sequence[tuple[int, ...]]


@torch.inference_mode()
def first_token_logits(model: Any, texts: Texts) -> Tensor:
    """(n, V) float32 on the CPU: the logits of one model after each text, by plain forward passes."""
    runner, found = UncachedModelRunner(model, compiled_head=False), dict[int, Tensor]()
    for batch in _batches(texts):
        ends = torch.tensor([[len(texts[i]) - 1] for i in batch])
        logits = runner.logits_at([texts[i] for i in batch], ends)[:, 0].float().cpu()
        found |= dict(zip(batch, logits, strict=True))
    return torch.stack([found[i] for i in range(len(texts))])


def log_probabilities(logits: Tensor, vocabulary: Tensor) -> Tensor:
    """(n, V): log-probabilities over the ids that may be sampled, from logits that may be wider; −inf elsewhere."""
    return logits[:, : len(vocabulary)].masked_fill(~vocabulary, -torch.inf).log_softmax(dim=-1)


def first_token_logprobs(model: Any, texts: Texts, vocabulary: Tensor) -> Tensor:
    """(n, V) float32 on the CPU, over the ids that may be sampled."""
    return log_probabilities(first_token_logits(model, texts), vocabulary)


def mean_divergence(reference: Tensor, other: Tensor) -> float:
    """Mean over rows of KL(reference ‖ other), nats; both are log-probabilities (n, V)."""
    parts = reference.double().exp() * (reference.double() - other.double())
    return float(parts.masked_fill(reference == -torch.inf, 0.0).sum(dim=-1).mean())


def halves(texts: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """(the texts that something is fitted on, those that are held out): every second one."""
    return list(texts[0::2]), list(texts[1::2])


def _batches(texts: Texts) -> Iterator[list[int]]:
    """Places of texts of similar length, `PREFILL_TOKENS` at a time with their padding."""
    batch: list[int] = []
    for place in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        if batch and (len(batch) + 1) * len(texts[batch[0]]) > PREFILL_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
