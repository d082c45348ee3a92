"""Speculation: guess several tokens, let each model read them in one pass, keep those that would have been drawn.

A token belongs to its logits and to the uniform of its position, so there is nothing to correct for: the guesses of a
row are read, the tokens that follow from the logits are drawn just as without speculation, and the row goes on from
the first place where the draw is not the guess. The tokens are the same ones, sampled or greedy, under any filters;
this is stricter than speculative sampling (Leviathan et al., ICML 2023, arXiv 2211.17192), which keeps the
distribution only. What it costs is some acceptance: two distributions that overlap by 1−ε agree on a shared uniform a
little less often than that.

Who guesses is in `eddecode.guessers` and `eddecode.assistant`; when it pays, and how far ahead, in `eddecode.gain`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from einops import rearrange

from eddecode.engine.sequence import Draws, Row
from eddecode.engine.speculative.cost_model import CAUTION, LONGEST, Account, Chances, Pace, Record
from eddecode.engine.speculative.drafters import BaseGuesser, Column, Guesser, NgramGuesser, places

if TYPE_CHECKING:
    from eddecode.engine.engine import Engine

Mode = Literal["off", "auto", "base", "ngram"]


@dataclass
class Draft:
    """What a guesser said in one step.

    Attributes:
        guesser, account: who, and what is known of it at this batch size.
        chances: the same of each row's kind of request.
        columns: the guesses, place by place.
        read: how many of them the models are to read.
        expected: tokens that all rows together can expect of the step.
    """

    guesser: Guesser
    account: Account
    chances: list[Chances]
    expected: float
    columns: list[Column] = field(default_factory=list)
    read: int = 0

    @property
    def followed(self) -> bool:
        """Whether the step goes on from here: a pass of the base, once made, is not made again."""
        return self.read > 0 or self.guesser.is_base


class Speculation:
    """Takes the engine's steps, with guesses where they pay.

    Args:
        guessers: who may be asked, in this order.
        record: what is known of their costs and chances; kept from one engine to the next.
        always: read this many tokens at every step, whether it pays or not; for tests and measurements.
    """

    def __init__(self, guessers: Sequence[Guesser], record: Record | None = None, always: int = 0) -> None:
        self.guessers = tuple(guessers)
        self.record = record or Record()
        self.always = always

    @classmethod
    def of(cls, mode: Mode) -> Speculation | None:
        """By the guessers that a name stands for."""
        guessers: dict[Mode, list[Guesser]] = {
            "auto": [NgramGuesser(), BaseGuesser()],  # whoever asks for nothing goes first
            "base": [BaseGuesser()],
            "ngram": [NgramGuesser()],
        }
        return None if mode == "off" else cls(guessers[mode])

    def fresh(self) -> Speculation:
        """The same guessers for another engine, with what is known so far."""
        return Speculation([guesser.fresh() for guesser in self.guessers], self.record, self.always)

    @property
    def token_bytes(self) -> int:
        """What the guessers keep of every token of a row."""
        return sum(guesser.token_bytes for guesser in self.guessers)

    def trim(self) -> None:
        """Give back memory that the guessers can do without."""
        for guesser in self.guessers:
            guesser.trim()

    def step(self, engine: Engine) -> None:
        """Give every row of the engine its next token or tokens."""
        rows = list(engine.rows)
        pace, before = self.record.pace(len(rows)), [len(row.tokens) for row in rows]
        drafts = [] if pace.plain_due() and not self.always else self._ask(engine, rows, pace)
        start = time.perf_counter()
        if drafts and drafts[-1].followed:
            self._leap(engine, rows, drafts[-1])
            drafts[-1].account.verify.add(drafts[-1].read + 1, time.perf_counter() - start)
        else:
            engine.decode()
            pace.add_plain(time.perf_counter() - start)
        for draft in drafts:
            _compare(draft, rows, before)
        if not self.always:
            _settle(pace, drafts, len(rows))

    # Asking

    def _ask(self, engine: Engine, rows: Sequence[Row], pace: Pace) -> list[Draft]:
        """The drafts of those who were asked, up to the first that is followed."""
        drafts: list[Draft] = []
        for guesser in self.guessers:
            account = self._account(engine, pace, guesser)
            room = min(LONGEST, _room(engine), guesser.room(rows))
            if room > 1 and (self.always or account.may_be_asked(pace.plain_seconds)):
                params = [row.request.params for row in rows]
                chances = [self.record.chances(guesser.name, p.alpha, p.temperature) for p in params]
                drafts.append(Draft(guesser, account, chances, expected=len(rows)))
                self._draft(engine, rows, pace, drafts[-1], room)
                if drafts[-1].followed:
                    break
        return drafts

    @staticmethod
    def _account(engine: Engine, pace: Pace, guesser: Guesser) -> Account:
        if guesser.name not in pace.accounts:
            share = guesser.share(engine)
            pace.accounts[guesser.name] = Account(share, saved=share if guesser.is_base else 0.0)
        return pace.accounts[guesser.name]

    def _draft(self, engine: Engine, rows: Sequence[Row], pace: Pace, draft: Draft, room: int) -> None:
        """Guesses for as long as one more is worth its cost."""
        account, plain, worth = draft.account, pace.plain_seconds, pace.worth(len(rows))
        longest = min(room, self.always or account.verify.longest)
        needed = [1.0] * len(
            rows
        )  # the chance that a row needs the next token: that all before it were right
        draft.guesser.follow(rows)
        start = time.perf_counter()
        for column in draft.guesser.guesses(engine, rows):
            draft.columns.append(column)
            if len(draft.columns) == longest:
                break
            needed = [
                chance * chances.of(level)
                if len(row.tokens) + len(draft.columns) < row.request.params.max_new_tokens
                else 0.0
                for chance, chances, level, row in zip(
                    needed, draft.chances, column.levels, rows, strict=True
                )
            ]
            gain = sum(needed) * worth
            reading = CAUTION * account.reading_more(plain)
            go_on = self.always or gain > CAUTION * account.asking(1, plain) + reading
            if go_on or (not draft.guesser.is_base and gain > reading):
                draft.read, draft.expected = draft.read + 1, draft.expected + sum(needed)
            if not go_on:
                break
        account.guess.add((time.perf_counter() - start) / max(1, len(draft.columns)))
        plain_is_left = not (self.always or draft.guesser.is_base)
        if plain_is_left and draft.expected * worth < CAUTION * account.reading(draft.read + 1, plain):
            draft.read, draft.expected = 0, len(rows)

    # Going on

    def _leap(self, engine: Engine, rows: Sequence[Row], draft: Draft) -> None:
        """Let the models read the draft, draw at every place, and give each row what follows from it."""
        count, lengths = draft.read + 1, engine.lengths()
        guesses = [column.tokens for column in draft.columns[: draft.read]]
        read = torch.tensor([[row.tokens[-1] for row in rows], *guesses]).T.contiguous()  # (n, count)
        known = [column.logits for column in draft.columns if column.logits is not None]
        if known:  # the base has read them
            others = [
                engine.runner.forward_model(model, read, lengths[model]) for model in range(1, len(lengths))
            ]
            passes = [torch.stack(known, dim=1), *others]  # (n, count, V) each
        else:
            passes = engine.runner.forward(read, lengths)
        ahead = [places(rows, i) for i in range(count)]
        draws = Draws.at([place for row in zip(*ahead, strict=True) for place in row], engine.runner.device)
        draw = engine.draw(draws, [rearrange(z, "n t v -> (n t) v") for z in passes])
        tokens, logprobs = draw.tokens.tolist(), draw.logprobs.T.tolist()
        for r, row in enumerate(rows):
            for i in range(count):
                token = tokens[r * count + i]
                engine.append(row, token, logprobs[r * count + i])
                if row.finish_reason is not None or i == draft.read:
                    break
                self.record.guessed += 1
                if guesses[i][r] != token:
                    break
                self.record.right += 1


def _room(engine: Engine) -> int:
    """Tokens that every model can read before its window ends."""
    left = [
        window - max(lengths)
        for window, lengths in zip(engine.windows, engine.lengths(), strict=True)
        if window is not None
    ]
    return min(left, default=LONGEST)


def _compare(draft: Draft, rows: Sequence[Row], before: Sequence[int]) -> None:
    """Learn from what was drawn since each row had `before` tokens, also of guesses that nobody read."""
    for r, (row, chances) in enumerate(zip(rows, draft.chances, strict=True)):
        for column, token in zip(draft.columns, row.tokens[before[r] :], strict=False):
            right = column.tokens[r] == token
            chances.add(column.levels[r], right)
            if not right:
                break


def _settle(pace: Pace, drafts: Sequence[Draft], rows: int) -> None:
    """Keep the books of a step: by what it should have taken and brought, since one step alone is mostly luck."""
    plain = pace.plain_seconds
    seconds, tokens = plain, float(rows)
    asked = 0.0
    for draft in drafts:
        asking = draft.account.asking(len(draft.columns), plain)
        if draft.followed:
            seconds, tokens = draft.account.reading(draft.read + 1, plain), draft.expected
            draft.account.settle((asking + seconds) / plain - tokens / rows)
        else:
            draft.account.settle(asking / plain)
        asked += asking
    pace.took(asked + seconds, tokens)
