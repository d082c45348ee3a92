"""Pairs, samplers and prompts for the tests that decode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from eddecode.models.pair import ModelPair
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams
from helpers import tiny

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=10, ignore_eos=True)


@lru_cache(maxsize=32)
def pair(arch: str = "llama", vocab: int = tiny.VOCAB, seed: int = 0) -> ModelPair:
    """A pair without tokenizers: every id may be sampled. Shared: do not change it."""
    return ModelPair.from_models(*tiny.tiny_pair_models(arch, vocab, seed))


def spoken_pair(vocab: int = tiny.VOCAB, **options: Any) -> ModelPair:
    """A new pair with tokenizers, whose aligned side has a chat template."""
    base, aligned = tiny.tiny_pair_models("llama", vocab)
    return ModelPair.from_models(
        base, aligned, tiny.tiny_tokenizer(vocab, chat=False), tiny.tiny_tokenizer(vocab, **options)
    )


def sampler(arch: str = "llama", **options: Any) -> Sampler:
    """A sampler over a shared pair."""
    return Sampler(pair(arch), **options)


def ids(seed: int, length: int, vocab: int = tiny.VOCAB) -> tuple[int, ...]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, vocab, (length,), generator=generator).tolist())


def prompt(seed: int, base: int, aligned: int, vocab: int = tiny.VOCAB) -> RenderedPrompt:
    """A different random text for each model."""
    return RenderedPrompt(ids(2 * seed, base, vocab), ids(2 * seed + 1, aligned, vocab))


def mixed_prompts(count: int = 16) -> list[RenderedPrompt]:
    """Prompts of many lengths: shorter and longer than the tiny models' sliding window, on either side."""
    return [prompt(i, 1 + (5 * i) % 29, 1 + (11 * i + 6) % 37) for i in range(count)]


def tokens(completions: Sequence[Any]) -> list[list[int]]:
    """Their ids."""
    return [completion.token_ids for completion in completions]
