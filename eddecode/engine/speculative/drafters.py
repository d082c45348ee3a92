"""Who guesses: the base model, or the text itself. Each gives one token per row at a time, and how sure it is of it.

The base model samples with the uniforms of the positions that it guesses for: its logits are needed anyway, and at
small α it is close to the contrast. How sure: by how far its best logit is above the next one. A text that repeats
itself guesses for nothing: what followed where its last tokens stood together before. How sure: by how many they are.
A small model that guesses is in `eddecode.assistant`.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from eddecode.engine.sequence import Draws, Row
from eddecode.engine.speculative.cost_model import LEVELS

if TYPE_CHECKING:
    from eddecode.engine.engine import Engine

MARGINS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # between two logits: LEVELS − 1 bounds
PAIR = 2  # tokens that must have stood together before
NO_GUESS = -1
ENDLESS = 1 << 30


@dataclass(frozen=True)
class Column:
    """One guess for each row.

    Attributes:
        tokens: of each row.
        levels: how sure, 0 … LEVELS − 1, or NO_GUESS.
        logits: (n, V) float32 of the base model at the place that the guess is for, if it was the base that guessed.
    """

    tokens: list[int]
    levels: list[int]
    logits: Tensor | None = None


class Guesser(Protocol):
    """What speculation needs of one who guesses.

    name: how it is called in the record. is_base: whether a guess is a pass of the base model, which is then not
    needed any more. token_bytes: what it keeps of every token of a row. share: of a plain step's seconds, those of a
    guess, as far as can be said before one was timed.
    """

    name: str
    is_base: bool
    token_bytes: int

    def share(self, engine: Engine) -> float:
        """See above."""
        ...

    def follow(self, rows: Sequence[Row]) -> None:
        """Take in what was drawn since; comes before `guesses` and is not counted as its cost."""
        ...

    def trim(self) -> None:
        """Give back memory."""
        ...

    def fresh(self) -> Guesser:
        """The same one for another engine."""
        ...

    def room(self, rows: Sequence[Row]) -> int:
        """How many tokens it can guess ahead at most."""
        ...

    def guesses(self, engine: Engine, rows: Sequence[Row]) -> Iterator[Column]:
        """One column after the other, each as if those before it had been right; may end."""
        ...


class BaseGuesser:
    """The base model: its logits are needed anyway."""

    name, is_base, token_bytes = "base", True, 0

    def __init__(self) -> None:
        self._asked: tuple[list[Row], Draws] | None = None  # of the last step

    def share(self, engine: Engine) -> float:
        """The base's part of a step."""
        return engine.runner.base_share

    def fresh(self) -> BaseGuesser:
        """Another one: rows differ."""
        return BaseGuesser()

    def follow(self, rows: Sequence[Row]) -> None:
        """The base model is where the engine is."""

    def trim(self) -> None:
        """It keeps nothing."""

    def room(self, rows: Sequence[Row]) -> int:
        """The engine sees to it that the pair's models have room."""
        return ENDLESS

    def guesses(self, engine: Engine, rows: Sequence[Row]) -> Iterator[Column]:
        """See `Guesser.guesses`; each takes a pass."""
        if self._asked is None or self._asked[0] != rows:
            self._asked = list(rows), alone(rows, engine.runner.device)
        lengths, draws = engine.lengths()[0], self._asked[1]
        tokens = torch.tensor([row.tokens[-1] for row in rows])
        for i in itertools.count():
            logits = engine.runner.forward_model(0, tokens[:, None], [length + i for length in lengths])[:, 0]
            tokens = engine.draw(replace(draws, places=places(rows, i)), [logits]).tokens
            yield Column(tokens.tolist(), levels(logits), logits)


class NgramGuesser:
    """The text itself: the base's prompt and what was drawn so far."""

    name, is_base, token_bytes = "ngram", False, 0

    def __init__(self) -> None:
        self._texts: WeakKeyDictionary[Row, Repeats] = WeakKeyDictionary()

    def share(self, engine: Engine) -> float:
        """Nothing to speak of."""
        return 0.0

    def fresh(self) -> NgramGuesser:
        """Rows of another engine are other rows: what is kept of each is kept by the row."""
        return self

    def follow(self, rows: Sequence[Row]) -> None:
        """Read on."""
        for row in rows:
            self._texts.setdefault(row, Repeats(row.request.ids[0])).read(row.tokens)

    def trim(self) -> None:
        """What it keeps is small."""

    def room(self, rows: Sequence[Row]) -> int:
        """No limit."""
        return ENDLESS

    def guesses(self, engine: Engine, rows: Sequence[Row]) -> Iterator[Column]:
        """See `Guesser.guesses`; none where no row has anything to repeat."""
        texts = [self._texts[row] for row in rows]
        found = [text.found() for text in texts]
        if not any(length for _, length in found):
            return
        for i in itertools.count():
            yield Column(
                [text.guess(start, i) for text, (start, _) in zip(texts, found, strict=True)],
                [min(length - PAIR + i, LEVELS - 1) if length else NO_GUESS for _, length in found],
            )


class Repeats:
    """A growing text, and where each pair of its tokens stood last."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._prompt = len(prompt)
        self.text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # two tokens → the place behind them
        self._extend(prompt)

    def read(self, tokens: Sequence[int]) -> None:
        """Take in a completion, as far as it is new."""
        self._extend(tokens[len(self.text) - self._prompt :])

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if len(self.text) >= PAIR:
                self._after[tuple(self.text[-PAIR:])] = len(self.text)
            self.text.append(token)

    def found(self) -> tuple[int, int]:
        """(the place behind where the last tokens stood before, how many of them did); (0, 0) if not even two."""
        text = self.text
        start = self._after.get(tuple(text[-PAIR:]), 0)
        length = PAIR if start else 0
        while 0 < length < LEVELS + PAIR and length < start and text[start - 1 - length] == text[-1 - length]:
            length += 1
        return start, length

    def guess(self, start: int, i: int) -> int:
        """The token i places behind `start`, and over again from there where the text ends."""
        return self.text[start + i % (len(self.text) - start)]


def places(rows: Sequence[Row], ahead: int) -> list[tuple[Row, int]]:
    """Of each row the place so many tokens on, or its last one: what is read beyond that is thrown away."""
    return [(row, min(len(row.tokens) + ahead, row.request.params.max_new_tokens - 1)) for row in rows]


def alone(rows: Sequence[Row], device: torch.device) -> Draws:
    """The next draw of each row, from the logits of one model."""
    draws = Draws.at(places(rows, 0), device)
    return replace(draws, weights=torch.ones_like(draws.weights[:1]))


def levels(logits: Tensor) -> list[int]:
    """How sure a model is at each place, from logits (n, V): by how far the best is above the next."""
    best = logits.topk(min(2, logits.shape[-1])).values  # (n, 2)
    return [bisect.bisect(MARGINS, margin) for margin in (best[:, 0] - best[:, -1]).tolist()]
