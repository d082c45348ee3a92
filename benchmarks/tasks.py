"""The four tasks: what a safety team does with a pair, as fixed amounts of work that every alternative does alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from benchmarks.pairs import BenchPair
from eddecode import RenderedPrompt


class NotAvailable(Exception):  # noqa: N818  # not an error: the results show it as the reason of a gap
    """An alternative cannot do this work."""


@dataclass(frozen=True)
class Work:
    """One run of a task: every α on every prompt.

    Attributes:
        prompts: one per row; where completions are given, one per completion.
        alphas: strengths of the contrast.
        new_tokens: tokens per completion; no completion ends earlier.
        temperature: 0 is greedy.
        completions: given completions to score, as many as prompts; empty where completions are generated.
        seed: of sampling.
    """

    prompts: tuple[RenderedPrompt, ...]
    alphas: tuple[float, ...]
    new_tokens: int
    temperature: float
    completions: tuple[tuple[int, ...], ...] = ()
    seed: int = 0

    @property
    def rows(self) -> int:
        """Number of completions, generated or scored."""
        return len(self.alphas) * len(self.prompts)

    @property
    def tokens(self) -> int:
        """Number of tokens, generated or scored."""
        return self.rows * self.new_tokens

    @property
    def scoring(self) -> bool:
        """Whether the completions are given."""
        return bool(self.completions)

    def shorter(self, new_tokens: int, alphas: int | None = None) -> Work:
        """The same with fewer tokens per completion, and with the first few α's only."""
        n = min(new_tokens, self.new_tokens)
        completions = tuple(ids[:n] for ids in self.completions)
        return replace(self, new_tokens=n, alphas=self.alphas[:alphas], completions=completions)


@dataclass(frozen=True)
class Task:
    """A kind of work for any pair; for its fields see `Work`."""

    name: str
    title: str
    prompts: int
    alphas: tuple[float, ...]
    new_tokens: int
    temperature: float
    samples: int = 0  # given completions per prompt; 0: completions are generated

    def work(self, pair: BenchPair, *, quick: bool = False) -> Work:
        """The work on a pair; `quick` does an eighth of the tokens, and scores one completion per prompt."""
        tokens = self.new_tokens // 8 if quick else self.new_tokens
        prompts = pair.prompts(self.prompts)
        if not self.samples:
            return Work(prompts, self.alphas, tokens, self.temperature)
        prompts = tuple(prompt for prompt in prompts for _ in range(1 if quick else self.samples))
        generator = torch.Generator().manual_seed(11)
        ids = torch.randint(pair.base.config.vocab_size, (len(prompts), tokens), generator=generator)
        return Work(prompts, self.alphas, tokens, self.temperature, tuple(map(tuple, ids.tolist())))


TASKS = {
    task.name: task
    for task in (
        Task("T1", "one pair of prompts, 128 tokens, greedy, α 0.3", 1, (0.3,), 128, 0.0),
        Task("T2", "8 pairs of prompts, 64 tokens, sampled, α 0.3", 8, (0.3,), 64, 1.0),
        Task(
            "T3",
            "sweep: 8 α's × 8 pairs of prompts, 64 tokens, sampled",
            8,
            (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0),
            64,
            1.0,
        ),
        Task(
            "T4",
            "scoring: 32 given completions of 64 tokens at 16 α's",
            8,
            tuple(round(0.125 * i, 3) for i in range(1, 17)),
            64,
            1.0,
            samples=4,
        ),
    )
}
