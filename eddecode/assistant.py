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
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from eddecode.compare import kv_bytes_per_token
from eddecode.decoder import Prefix
from eddecode.errors import EngineError, PairError, ParamsError
from eddecode.group import Fit, Source, load_group
from eddecode.guessers import ENDLESS, Column, alone, levels, places
from eddecode.pair import ModelPair
from eddecode.placement import Placement
from eddecode.rows import Draws, Row
from eddecode.runner import PairRunner
from eddecode.speculative import Mode, Speculation
from eddecode.vocabulary import tokens_by_id

if TYPE_CHECKING:
    from eddecode.engine import Engine
    from eddecode.mixture import ModelGroup

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
        return AssistantGuesser(self._runner.fresh(), self.model, self._width)

    def trim(self) -> None:
        """Drop all rows; they are read again."""
        self._runner, self._slots = self._runner.fresh(), []

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
        prefixes: dict[tuple[int, ...], Prefix] = {}
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
            logits = self._runner.extend(0, read.clamp(max=self._largest), before)[:, -1]
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


def speculation_for(pair: ModelGroup, wanted: Mode | str | Path | Any) -> Speculation | None:
    """What a user asks for by a mode's name, or by an assistant (see `assistant_for`); None is none.

    Raises:
        ParamsError: it is a name, but neither a mode's nor a checkpoint's.
        PairError: see `assistant_for`.
    """
    if isinstance(wanted, str) and wanted in get_args(Mode):
        return Speculation.of(cast(Mode, wanted))
    try:
        return Speculation([assistant_for(pair, wanted)])
    except PairError as error:
        if not isinstance(wanted, str) or Path(wanted).exists():
            raise
        raise ParamsError(
            f"speculation is {wanted!r}; expected one of {', '.join(get_args(Mode))}, or an assistant model. As the "
            f"latter: {error}"
        ) from error


def assistant_for(pair: ModelGroup, source: str | Path | Any) -> AssistantGuesser:
    """The guesser that a checkpoint or a model stands for.

    Args:
        pair: whose completions it is to guess.
        source: a checkpoint's folder or hub id, which goes to the pair's device in the dtype that it was saved in; or
            a transformers model.

    Raises:
        PairError: there is no such checkpoint, it is no causal language model, it does not fit into memory, or its
            vocabulary is not the pair's.
    """
    tokenizer = None
    if isinstance(source, str | Path):
        placement = Placement.of(device=pair.device)
        loaded = load_group([Source(source, "assistant")], placement, Fit())
        source, tokenizer = loaded.models[0], loaded.tokenizers[0]
    itself = ModelPair.from_models(source, source)  # checks and reads the one model
    check_vocabulary(pair, source, tokenizer)
    runner = PairRunner(Alone((source,), itself.context_windows[:1], itself.device))  # type: ignore[arg-type]
    return AssistantGuesser(runner, source, len(pair.vocabulary))


def check_vocabulary(pair: ModelGroup, model: Any, tokenizer: Any) -> None:
    """PairError if an id means one thing to the pair and another to the assistant, or if that cannot be told."""
    way_out = (
        "give a small model that was trained with the pair's tokenizer, as a rule one of the same family"
    )
    if tokenizer is not None and pair.tokenizer is not None:
        ours, theirs = tokens_by_id(pair.tokenizer), tokens_by_id(tokenizer)
        ids: list[int] = pair.vocabulary.nonzero()[:, 0].tolist()
        differing = [i for i in ids if ours.get(i) != theirs.get(i)]
        if differing:
            shown = ", ".join(
                f"id {i} is {ours.get(i)!r} in the pair and {theirs.get(i)!r} in the assistant"
                for i in differing[:SHOWN]
            )
            raise PairError(
                f"the assistant's vocabulary is not the pair's: {len(differing)} of {len(ids)} ids that may be sampled "
                f"differ ({shown}); {way_out}"
            )
        return
    width = int(model.get_output_embeddings().weight.shape[0])
    widths = [int(other.get_output_embeddings().weight.shape[0]) for other in pair.models]
    if width not in widths:
        raise PairError(
            f"the assistant scores {width} ids and the pair's models {' and '.join(map(str, widths))}, and there are "
            f"no two tokenizers to compare; {way_out}, by its folder, so that its tokenizer is read too"
        )
