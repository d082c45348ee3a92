"""A small model that drafts: it reads what the base model reads, and the models of the pair verify its tokens.

As `assistant_model` in transformers, it must share the pair's vocabulary, for it proposes ids. It samples with the
random numbers of the positions that it drafts for, so that its tokens are right as often as possible. It has slots of
its own: sequences that are new are prefilled, those that left are removed, and tokens that were sampled since its last
draft are read together with the next one, in the same pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from eddecode.engine.sequence import SequenceState, sample
from eddecode.engine.speculative.drafters import (
    OVERHEAD,
    UNLIMITED,
    DraftTokens,
    confidence_levels,
    next_positions,
    single_model_batch,
    verification_cost,
)
from eddecode.execution.interfaces import PrefillResult
from eddecode.execution.runner import PairRunner
from eddecode.models.sizes import kv_bytes_per_token
from eddecode.sampling.contrast import widened

MAX_PENDING = 16  # tokens that are read late in one pass; a sequence with more is prefilled anew


@dataclass
class Slot:
    """A sequence in a slot of the assistant.

    Attributes:
        sequence: its prompt is in the cache.
        num_read: tokens of its completion that are in the cache.
        drafted: tokens in the cache after them, which may be wrong.
    """

    sequence: SequenceState
    num_read: int
    drafted: list[int] = field(default_factory=list)

    def num_pending(self) -> int:
        """Tokens that are still to be read; at least one, the last, for the logits after it."""
        tokens = self.sequence.tokens
        for token in self.drafted:
            if self.num_read == len(tokens) or token != tokens[self.num_read]:
                break
            self.num_read += 1
        self.drafted = []
        return len(tokens) - min(self.num_read, len(tokens) - 1)


class AssistantDrafter:
    """Drafts with a model of its own; see `eddecode.engine.speculative.drafters.Drafter`.

    Args:
        runner, model: of that model alone.
        target: the engine's runner, and the (V,) vocabulary of the pair; None before `bind`.
    """

    name, is_base = "assistant", False

    def __init__(
        self, runner: PairRunner, model: Any, target: tuple[PairRunner, Tensor] | None = None
    ) -> None:
        self.model, self._runner, self._target = model, runner, target
        self._slots: list[Slot] = []
        self._window = runner.windows[0]
        self._largest_id = int(model.get_input_embeddings().weight.shape[0]) - 1
        self.token_bytes = kv_bytes_per_token(model) or 0

    def bind(self, runner: PairRunner, vocabulary: Tensor) -> AssistantDrafter:
        """See `Drafter.bind`; the copy has free slots."""
        return type(self)(self._runner.clone_empty(), self.model, (runner, vocabulary))

    def trim(self) -> None:
        """Free all slots; the sequences are prefilled anew."""
        self._runner, self._slots = self._runner.clone_empty(), []

    def cost(self, num_sequences: int) -> float:
        """A pass of the assistant, and one more token in the passes of all models."""
        assert self._target is not None
        runner = self._target[0]
        own = self._runner.num_parameters / runner.num_parameters
        return own + verification_cost(runner.device, num_sequences) + OVERHEAD

    def room(self, sequences: Sequence[SequenceState]) -> int:
        """What is left of its context window."""
        return UNLIMITED if self._window is None else self._window - max(map(_length, sequences)) + 1

    def draft(self, sequences: Sequence[SequenceState]) -> Iterator[DraftTokens]:
        """See `Drafter.draft`; each token takes a pass, over slots that may stand in another order."""
        assert self._target is not None
        device, vocabulary = self._target[0].device, self._target[1]
        self._synchronize(sequences)
        slots, mine = self._slots, [slot.sequence for slot in self._slots]
        count = max(slot.num_pending() for slot in slots)
        tokens = torch.tensor([[*s.request.prompts[0], *s.tokens][-count:] for s in mine])  # (n, count)
        lengths = [_length(s) - count for s in mine]
        batch, slot_of = single_model_batch(mine, device), {s: i for i, s in enumerate(mine)}
        order = [slot_of[s] for s in sequences]
        for i in itertools.count():
            logits = self._runner.forward_model(0, tokens.clamp(max=self._largest_id), lengths)[:, -1]
            for slot, read in zip(slots, tokens.tolist(), strict=True):
                if i == 0:
                    slot.num_read = len(slot.sequence.tokens)
                else:
                    slot.drafted += read
            logits = widened(logits, len(vocabulary)).to(device)
            places = replace(batch, positions=next_positions(mine, i))
            drafted = sample(places, [logits], vocabulary, self._runner.names).tokens
            ids, levels = drafted.tolist(), confidence_levels(logits)
            yield DraftTokens([ids[j] for j in order], [levels[j] for j in order])
            tokens, lengths = drafted[:, None], [_length(s) + i for s in mine]

    def _synchronize(self, sequences: Sequence[SequenceState]) -> None:
        """Remove sequences that left or have much to read; prefill those that have no slot."""
        most, current = min(MAX_PENDING, *map(_length, sequences)), set(sequences)
        for i in reversed(range(len(self._slots))):
            if self._slots[i].sequence not in current or self._slots[i].num_pending() > most:
                self._runner.remove(i)
                self._slots[i] = self._slots[-1]
                self._slots.pop()
        self._runner.reserve(len(sequences))
        prefilled: dict[tuple[int, ...], PrefillResult] = {}
        present = {slot.sequence for slot in self._slots}
        for sequence in sequences:
            if sequence not in present:
                ids = (*sequence.request.prompts[0], *sequence.tokens[:-1])
                text = tuple(min(token, self._largest_id) for token in ids)
                if text not in prefilled:
                    prefilled[text] = self._runner.prefill(0, [text])[0]
                self._runner.add([prefilled[text]])
                self._slots.append(Slot(sequence, len(sequence.tokens) - 1))


def _length(sequence: SequenceState) -> int:
    """Tokens of the text as the base model reads it."""
    return len(sequence.request.prompts[0]) + len(sequence.tokens)


@dataclass(frozen=True)
class SingleModel:
    """What a `PairRunner` needs of a group of models, for one model."""

    models: tuple[Any]
    context_windows: tuple[int | None]
    device: torch.device
    names: tuple[str] = ("assistant",)
