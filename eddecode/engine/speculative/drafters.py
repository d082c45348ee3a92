"""Drafters: where drafted tokens come from. Each proposes one token per sequence at a time, with a confidence level.

The base model drafts with the random numbers of the positions that it drafts for: its logits are needed anyway, and
at small α it is close to the contrast. Its confidence is the margin between its two best logits. The text itself drafts
where it repeats itself (prompt lookup): what followed the last tokens where they occurred before. Its confidence is the
number of tokens that match. A small model that drafts is in `eddecode.engine.speculative.assistant`.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from eddecode.engine.sequence import SamplingBatch, SequenceState, sample
from eddecode.execution.runner import PairRunner

NUM_LEVELS = 10  # of confidence
# Between the two best logits: the upper bounds of all levels but the highest.
MARGINS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
NGRAM = 2  # tokens that must have occurred together before
NO_DRAFT = -1  # the level of a sequence that nothing is proposed for
UNLIMITED = 1 << 30

# Tokens of a pass for which computing takes about as long as reading the weights. A pass over fewer costs little more
# than a pass over one. Measured for a CPU in docs/performance.md ("Speculation"); a GPU computes faster than it reads.
COMPUTE_BOUND_TOKENS = {"cpu": 32, "cuda": 256}
OVERHEAD = 0.05  # of a plain step: sampling a drafted token, and the rest


@dataclass(frozen=True)
class DraftTokens:
    """One drafted token for each sequence.

    Attributes:
        tokens: ids.
        levels: confidence in each, 0 … NUM_LEVELS − 1, or NO_DRAFT.
        base_logits: (n, V) float32, the base model's logits that the tokens were sampled from, if it was the base.
    """

    tokens: list[int]
    levels: list[int]
    base_logits: Tensor | None = None


class Drafter(Protocol):
    """What a speculator needs of a drafter.

    Attributes:
        name: key of its statistics.
        is_base: whether its passes are the base model's own, so that verification need not repeat them.
        token_bytes: bytes that it keeps for each token of a sequence.
    """

    name: str
    is_base: bool
    token_bytes: int

    def bind(self, runner: PairRunner, vocabulary: Tensor) -> Drafter:
        """The same drafter for the sequences of an engine with this runner and vocabulary."""
        ...

    def cost(self, num_sequences: int) -> float:
        """Estimated cost of drafting and verifying one more token for each sequence, in plain steps."""
        ...

    def room(self, sequences: Sequence[SequenceState]) -> int:
        """How many tokens it can draft at most."""
        ...

    def draft(self, sequences: Sequence[SequenceState]) -> Iterator[DraftTokens]:
        """Drafted tokens, each under the assumption that those before are right; may end."""
        ...

    def trim(self) -> None:
        """Release memory."""
        ...


def verification_cost(device: torch.device, num_sequences: int) -> float:
    """Estimated cost of one more token per sequence in a pass, in passes over one token per sequence."""
    return num_sequences / COMPUTE_BOUND_TOKENS.get(device.type, COMPUTE_BOUND_TOKENS["cpu"])


class BaseDrafter:
    """The base model of the engine's runner."""

    name, is_base, token_bytes = "base", True, 0

    def __init__(self, runner: PairRunner | None = None, vocabulary: Tensor | None = None) -> None:
        self._runner, self._vocabulary = runner, vocabulary
        self._last: tuple[list[SequenceState], SamplingBatch] | None = None  # of the last step

    def bind(self, runner: PairRunner, vocabulary: Tensor) -> BaseDrafter:
        """See `Drafter.bind`."""
        return BaseDrafter(runner, vocabulary)

    def cost(self, num_sequences: int) -> float:
        """A pass of the base, and one more token in the passes of the other models."""
        share = self._bound()[0].base_share
        return share + (1 - share) * verification_cost(self._bound()[0].device, num_sequences) + OVERHEAD

    def room(self, sequences: Sequence[SequenceState]) -> int:
        """Unlimited: the engine checks the context windows of its models."""
        return UNLIMITED

    def draft(self, sequences: Sequence[SequenceState]) -> Iterator[DraftTokens]:
        """See `Drafter.draft`; each token takes a pass of the base."""
        runner, vocabulary = self._bound()
        if self._last is None or self._last[0] != sequences:
            self._last = list(sequences), single_model_batch(sequences, runner.device)
        batch = self._last[1]
        lengths = [len(s.request.prompts[0]) + len(s.tokens) - 1 for s in sequences]
        tokens = torch.tensor([s.tokens[-1] for s in sequences])
        drafted: list[list[int]] = [[] for _ in sequences]
        for i in itertools.count():
            logits = runner.forward_model(0, tokens[:, None], [length + i for length in lengths])[:, 0]
            places = replace(batch, positions=next_positions(sequences, i), drafted=drafted)
            tokens = sample(places, [logits], vocabulary, runner.names).tokens
            drafted = [[*before, token] for before, token in zip(drafted, tokens.tolist(), strict=True)]
            yield DraftTokens(tokens.tolist(), confidence_levels(logits), logits)

    def trim(self) -> None:
        """It holds no memory."""

    def _bound(self) -> tuple[PairRunner, Tensor]:
        assert self._runner is not None  # `bind` comes first
        assert self._vocabulary is not None
        return self._runner, self._vocabulary


class NgramDrafter:
    """The base model's prompt and the completion so far (prompt lookup decoding)."""

    name, is_base, token_bytes = "ngram", False, 0

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._indices: WeakKeyDictionary[SequenceState, NgramIndex] = WeakKeyDictionary()

    def bind(self, runner: PairRunner, vocabulary: Tensor) -> NgramDrafter:
        """See `Drafter.bind`."""
        return NgramDrafter(runner.device)

    def cost(self, num_sequences: int) -> float:
        """One more token in the passes of all models."""
        return verification_cost(self._device, num_sequences) + OVERHEAD

    def room(self, sequences: Sequence[SequenceState]) -> int:
        """No limit."""
        return UNLIMITED

    def draft(self, sequences: Sequence[SequenceState]) -> Iterator[DraftTokens]:
        """See `Drafter.draft`; nothing where no sequence repeats itself."""
        matches = []
        for sequence in sequences:
            index = self._indices.setdefault(sequence, NgramIndex(sequence.request.prompts[0]))
            index.update(sequence.tokens)
            matches.append((index, *index.find()))
        if not any(length for _, _, length in matches):
            return
        for i in itertools.count():
            yield DraftTokens(
                [index.token(start, i) for index, start, _ in matches],
                [min(n - NGRAM + i, NUM_LEVELS - 1) if n else NO_DRAFT for _, _, n in matches],
            )

    def trim(self) -> None:
        """It holds little memory."""


class NgramIndex:
    """A growing text, and where each n-gram of it occurred last."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._prompt_length = len(prompt)
        self.text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram → the position after its last occurrence
        self._extend(prompt)

    def update(self, tokens: Sequence[int]) -> None:
        """Append the tokens of a completion that are new."""
        self._extend(tokens[len(self.text) - self._prompt_length :])

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if len(self.text) >= NGRAM:
                self._after[tuple(self.text[-NGRAM:])] = len(self.text)
            self.text.append(token)

    def find(self) -> tuple[int, int]:
        """(position after the last earlier occurrence of the last tokens, how many match); (0, 0) if fewer than two."""
        text = self.text
        start = self._after.get(tuple(text[-NGRAM:]), 0)
        length = NGRAM if start else 0
        most = min(start, NUM_LEVELS + NGRAM)
        while 0 < length < most and text[start - 1 - length] == text[-1 - length]:
            length += 1
        return start, length

    def token(self, start: int, i: int) -> int:
        """The token at position start + i; after the end of the text it goes on from `start` again."""
        return self.text[start + i % (len(self.text) - start)]


def next_positions(sequences: Sequence[SequenceState], ahead: int) -> list[tuple[SequenceState, int]]:
    """The position of each sequence `ahead` tokens after the next one, at most its last one."""
    return [(s, min(len(s.tokens) + ahead, s.request.params.max_new_tokens - 1)) for s in sequences]


def single_model_batch(sequences: Sequence[SequenceState], device: torch.device) -> SamplingBatch:
    """The sampling inputs of the next token of each sequence, from the logits of one model."""
    batch = SamplingBatch.from_positions(next_positions(sequences, 0), device)
    return replace(batch, weights=torch.ones_like(batch.weights[:1]))


def confidence_levels(logits: Tensor) -> list[int]:
    """The confidence of a model in each token, from logits (n, V): the margin between its two best logits."""
    best = logits.topk(min(2, logits.shape[-1])).values  # (n, 2)
    return [bisect.bisect(MARGINS, margin) for margin in (best[:, 0] - best[:, -1]).tolist()]
