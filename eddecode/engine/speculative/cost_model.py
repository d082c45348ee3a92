"""When guessing pays: what guesses cost on this machine, how often they are right, and what follows from both.

One rule decides everything. A token is worth the seconds that it takes now; reading one more guess costs what it
costs; so a guess is read as long as the chance that it is needed, times the worth of a token, exceeds its cost. The
chance is learnt separately for guesses of different certainty (see `eddecode.guessers`), since a base model that is
sure of its next token is rarely contradicted: to stop at the doubtful ones gains more than any fixed length. All of
this is learnt in passing: what a guesser would have said is compared with what was drawn whether it was read or not.

A guesser that costs more than it brings is bounded by a purse: once it has lost half of a plain step it rests, and
each time for twice as long.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

LEVELS = 10  # of certainty
CAUTION = 1.05  # costs are taken to be that much higher than they were measured
PURSE = 0.5  # plain steps that a guesser may lose before it rests
REST = (64, 2048)  # steps: the first rest, and the longest
STALE = 64  # steps after which a plain one is timed again
LONGEST = 12  # tokens read at a time
MEMORY = 0.98  # of a count, at each new case: the last fifty or so
RECENT = 0.95  # the same for what a token takes now, per step
PRIOR = 2.0  # cases that stand for what is assumed before any are known
SLOPE = 0.05  # of a pass: what each further token adds to it, before it is known


class Recent:
    """The median of the last few values: one that was held up does not count."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=9)

    def add(self, value: float) -> None:
        """Take in a value."""
        self._values.append(value)

    def value(self, otherwise: float) -> float:
        """The median, or this where nothing is known."""
        return statistics.median(self._values) if self._values else otherwise

    def forget(self) -> None:
        """Know nothing."""
        self._values.clear()

    def __len__(self) -> int:
        return len(self._values)


class Curve:
    """Seconds of a pass by the tokens that each row reads in it."""

    def __init__(self) -> None:
        self._known: dict[int, Recent] = {}

    def add(self, tokens: int, seconds: float) -> None:
        """Take in a pass."""
        self._known.setdefault(tokens, Recent()).add(seconds)

    def _seconds(self, known: int) -> float:
        # Fewer tokens take no longer than more: what was held up at a number that is seldom read does not count.
        return min(seconds.value(0.0) for tokens, seconds in self._known.items() if tokens >= known)

    def slope(self, otherwise: float) -> float:
        """Seconds that one more token costs; `otherwise`: a pass over one token, where none is known."""
        few = min(self._known, default=0)
        first = self._seconds(few) if few else otherwise
        rises = [(self._seconds(tokens) - first) / (tokens - few) for tokens in self._known if tokens > few]
        return statistics.median(rises) if rises else SLOPE * first

    def at(self, tokens: int, otherwise: float) -> float:
        """Seconds of a pass over so many tokens, reckoned from the nearest number that is known."""
        near = min(self._known, key=lambda known: abs(known - tokens), default=1)
        seconds = self._seconds(near) if self._known else otherwise
        return max(0.0, seconds + (tokens - near) * self.slope(otherwise))

    @property
    def longest(self) -> int:
        """Tokens up to which it may be relied on: twice as many as were tried."""
        return 2 * max(self._known, default=1)

    def forget(self) -> None:
        """Know nothing."""
        self._known.clear()


class Chances:
    """How often guesses of each level of certainty were right, for one guesser and one kind of request."""

    def __init__(self) -> None:
        self._right, self._seen = [0.0] * LEVELS, [0.0] * LEVELS

    def of(self, level: int) -> float:
        """The chance that a guess of this level is right, less a standard error; a level below zero is no guess.

        A level of which little is known is taken to be like all of them, and all of them to be even.
        """
        if level < 0:
            return 0.0
        overall = (sum(self._right) + PRIOR / 2) / (sum(self._seen) + PRIOR)
        seen = self._seen[level] + PRIOR
        rate = (self._right[level] + PRIOR * overall) / seen
        return rate - math.sqrt(rate * (1 - rate) / seen)

    def add(self, level: int, right: bool) -> None:
        """Count a guess."""
        if level >= 0:
            self._right[level] = MEMORY * self._right[level] + right
            self._seen[level] = MEMORY * self._seen[level] + 1


class Account:
    """One guesser at one batch size: what it costs, and whether it may be asked.

    Args:
        share: of a plain step's seconds, those of a guess for every row, until one was timed.
        saved: of a plain step's seconds, what a guess takes off the pass that verifies it.

    Attributes:
        guess: seconds of one guess for every row.
        verify: seconds of what follows the guesses, by the tokens that each row reads then.
    """

    def __init__(self, share: float, saved: float) -> None:
        self.guess, self.verify = Recent(), Curve()
        self._share, self._saved = share, saved
        self._lost = 0.0
        self._rest, self._resting = REST[0], 0

    def asking(self, guesses: int, plain: float) -> float:
        """Seconds of so many guesses; here and below, `plain` are those of a plain step."""
        return guesses * self.guess.value(self._share * plain)

    def reading(self, tokens: int, plain: float) -> float:
        """Seconds of what follows the guesses, where each row reads so many tokens then."""
        return self.verify.at(tokens, (1 - self._saved) * plain)

    def reading_more(self, plain: float) -> float:
        """Seconds of reading one token more."""
        return self.verify.slope((1 - self._saved) * plain)

    def may_be_asked(self, plain: float) -> bool:
        """Whether it may in this step; each call is one step of its rest."""
        if self._resting:
            self._resting -= 1
            if not self._resting:  # what sent it to rest may have been a hiccup
                self.guess.forget()
                self.verify.forget()
            return False
        if CAUTION * (self.asking(1, plain) + self.reading_more(plain)) > plain:  # were it right each time
            self._go_to_rest()
            return False
        return True

    def _go_to_rest(self) -> None:
        """Be left alone for a while, next time for longer."""
        self._resting, self._lost = self._rest, 0.0
        self._rest = min(2 * self._rest, REST[1])

    def settle(self, lost: float) -> None:
        """Take in what asking lost in one step (gained, if negative), in plain steps."""
        self._lost = max(0.0, self._lost + lost)
        if lost < 0:
            self._rest = REST[0]
        if self._lost > PURSE:
            self._go_to_rest()


class Pace:
    """What is known of one batch size: of plain steps, of each guesser, and of what a token takes now.

    Attributes:
        accounts: of each guesser, by its name.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self._plain = Recent()
        self._since_plain = 0
        self._tokens = self._seconds = 0.0

    @property
    def plain_seconds(self) -> float:
        """Of a plain step; 0 before any was timed."""
        return self._plain.value(0.0)

    def plain_due(self) -> bool:
        """Whether a plain step should be timed."""
        return len(self._plain) < 2 or self._since_plain >= STALE

    def add_plain(self, seconds: float) -> None:
        """Take in a plain step."""
        self._plain.add(seconds)
        self._since_plain = 0

    def worth(self, rows: int) -> float:
        """Seconds that one token of one row takes now; never more than in a plain step."""
        plain = self.plain_seconds / rows
        return min(plain, self._seconds / self._tokens) if self._tokens else plain

    def took(self, seconds: float, tokens: float) -> None:
        """Take in a step."""
        self._seconds = RECENT * self._seconds + seconds
        self._tokens = RECENT * self._tokens + tokens
        self._since_plain += 1


@dataclass
class Record:
    """All that is known; it outlives the engines that it was learnt in.

    Attributes:
        guessed, right: guesses that were read up to the first wrong one of each row, and those that were right.
    """

    guessed: int = 0
    right: int = 0
    _paces: dict[int, Pace] = field(default_factory=dict)
    _chances: dict[Hashable, Chances] = field(default_factory=dict)

    def pace(self, rows: int) -> Pace:
        """Of batches of about that many rows."""
        return self._paces.setdefault(rows.bit_length(), Pace())

    def chances(self, *kind: Hashable) -> Chances:
        """Of one guesser for one kind of request."""
        return self._chances.setdefault(kind, Chances())
