"""A small model that guesses: it reads what the base model reads, and both models of the pair read its guesses.

As `assistant_model` in transformers, it must share the pair's vocabulary, for its guesses are ids. It samples with the
uniforms of the positions that it guesses for, so that it is right as often as may be. It keeps slots of its own, and
follows the engine from afar: rows that came are read, rows that left are dropped, and what was drawn since it was asked
last is read together with the next token, in the same pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eddecode.engine.sequence import Draws, Row
from eddecode.engine.speculative.drafters import ENDLESS, Column, alone, levels, places
from eddecode.errors import EngineError
from eddecode.execution.model_runner import PrefillResult
from eddecode.execution.pair_runner import PairRunner
from eddecode.models.sizes import kv_bytes_per_token

if TYPE_CHECKING:
    from eddecode.engine.engine import Engine

BEHIND = 16  # tokens that a row may be read behind; one that is further behind is read anew
SHOWN = 3


@dataclass
class Slot:
    """A row that the assistant has read.

    Attributes:
        row: the row; its prompt is in the cache.
        right: how many tokens of its completion are.
        guesses: what was read after them, right or wrong.
    """

    row: Row
    right: int
    guesses: list[int] = field(default_factory=list)

    def behind(self) -> int:
        """Tokens of the row that are still to be read; one at least, the last, for the logits after it."""
        tokens = self.row.tokens
        for guess in self.guesses:
            if self.right == len(tokens) or guess != tokens[self.right]:
                break
            self.right += 1
        self.guesses = []
        return len(tokens) - min(self.right, len(tokens) - 1)


class AssistantGuesser:
    """Guesses by a model of its own; see `eddecode.guessers.Guesser`.

    Args:
        runner, model: of that model alone.
        width: V, the ids of the pair's vocabulary.
    """

    name, is_base = "assistant", False

    def __init__(self, runner: PairRunner, model: Any, width: int) -> None:
        self.model, self._runner, self._width = model, runner, width
        self._slots: list[Slot] = []
        self._window = runner.windows[0]
        self._largest = int(model.get_input_embeddings().weight.shape[0]) - 1
        self.token_bytes = kv_bytes_per_token(model) or 0

    def fresh(self) -> AssistantGuesser:
        """The same model with no slot occupied."""
        return AssistantGuesser(self._runner.clone_empty(), self.model, self._width)

    def trim(self) -> None:
        """Drop all rows; they are read again."""
        self._runner, self._slots = self._runner.clone_empty(), []

    def share(self, engine: Engine) -> float:
        """It has to be tried."""
        return 0.0

    def room(self, rows: Sequence[Row]) -> int:
        """What is left of its context window."""
        return ENDLESS if self._window is None else self._window - max(map(_length, rows)) + 1

    def follow(self, rows: Sequence[Row]) -> None:
        """Drop rows that left, and those that are far behind; read those that are not there."""
        most, stay = min(BEHIND, *map(_length, rows)), set(rows)
        for i in reversed(range(len(self._slots))):
            if self._slots[i].row not in stay or self._slots[i].behind() > most:
                self._runner.remove(i)
                self._slots[i] = self._slots[-1]
                self._slots.pop()
        self._runner.reserve(len(rows))
        prefixes: dict[tuple[int, ...], PrefillResult] = {}
        here = {slot.row for slot in self._slots}
        for row in rows:
            if row not in here:
                text = tuple(min(token, self._largest) for token in (*row.request.ids[0], *row.tokens[:-1]))
                if text not in prefixes:
                    prefixes[text] = self._runner.prefill(0, [text])[0]
                self._runner.add([prefixes[text]])
                self._slots.append(Slot(row, len(row.tokens) - 1))

    def guesses(self, engine: Engine, rows: Sequence[Row]) -> Iterator[Column]:
        """See `Guesser.guesses`; each takes a pass of the model, whose slots may stand in another order."""
        slots, own = self._slots, [slot.row for slot in self._slots]
        count = max(slot.behind() for slot in slots)
        read = torch.tensor([[*row.request.ids[0], *row.tokens][-count:] for row in own])  # (n, count)
        before = [_length(row) - count for row in own]
        draws, where = alone(own, engine.runner.device), {row: i for i, row in enumerate(own)}
        for i in itertools.count():
            logits = self._runner.forward_model(0, read.clamp(max=self._largest), before)[:, -1]
            for slot, tokens in zip(slots, read.tolist(), strict=True):
                if i == 0:
                    slot.right = len(slot.row.tokens)
                else:
                    slot.guesses += tokens
            logits = self._widened(logits).to(engine.runner.device)
            read = self._draw(engine, replace(draws, places=places(own, i)), logits)[:, None]  # (n, 1)
            said, sure = read[:, 0].tolist(), levels(logits)
            yield Column([said[where[row]] for row in rows], [sure[where[row]] for row in rows])
            before = [_length(row) + i for row in own]

    def _widened(self, logits: Tensor) -> Tensor:
        """Logits (n, W) as (n, V) or wider: ids that the model does not know are never its guess."""
        missing = max(0, self._width - logits.shape[1])
        return F.pad(logits, (0, missing), value=-math.inf) if missing else logits

    @staticmethod
    def _draw(engine: Engine, draws: Draws, logits: Tensor) -> Tensor:
        try:
            return engine.draw(draws, [logits]).tokens
        except EngineError as error:
            raise EngineError(str(error).replace("the base model", "the assistant model")) from error


def _length(row: Row) -> int:
    """Tokens of the text as the base model sees it."""
    return len(row.request.ids[0]) + len(row.tokens)


@dataclass(frozen=True)
class Alone:
    """What a `PairRunner` asks of a group of models, for one model."""

    models: tuple[Any]
    context_windows: tuple[int | None]
    device: torch.device
    names: tuple[str] = ("assistant",)
