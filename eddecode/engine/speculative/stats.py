"""How often drafted tokens were right, and which drafters pause."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

# The acceptance that is assumed at first, and the number of outcomes that this counts for.
ASSUMED_ACCEPTANCE, ASSUMED_OUTCOMES = 0.8, 4
MEMORY = 30  # outcomes that an acceptance rate is the mean of, roughly
PAUSE = (64, 2048)  # steps: the first pause of a drafter, and the longest


class AcceptanceRate:
    """Moving average of outcomes in [0, 1]; of few outcomes it is their mean with the assumed value."""

    def __init__(self, assumed: float = ASSUMED_ACCEPTANCE) -> None:
        self.value, self._weight = assumed, ASSUMED_OUTCOMES

    def add(self, outcome: float) -> None:
        """Count an outcome."""
        self._weight = min(self._weight + 1, MEMORY)
        self.value += (outcome - self.value) / self._weight


@dataclass
class DrafterStats:
    """Statistics of one drafter.

    Attributes:
        overall: share of its tokens that were right, per step.
        by_level: the same by (kind of request, confidence level).
        pause: steps that it still pauses for.
        next_pause: length of its next pause.
    """

    overall: AcceptanceRate = field(default_factory=AcceptanceRate)
    by_level: dict[Hashable, AcceptanceRate] = field(default_factory=dict)
    pause: int = 0
    next_pause: int = PAUSE[0]

    def is_paused(self) -> bool:
        """Whether it pauses in this step; each call counts one step."""
        self.pause = max(0, self.pause - 1)
        return self.pause > 0

    def rate(self, key: Hashable) -> AcceptanceRate:
        """The acceptance of tokens with this key; until some were verified, that of all tokens."""
        return self.by_level.setdefault(key, AcceptanceRate(self.overall.value))

    def add_step(self, outcome: float, floor: float) -> None:
        """Count the share of right tokens of one step; pause if the average falls below the floor."""
        self.overall.add(outcome)
        if outcome >= floor:
            self.next_pause = PAUSE[0]
        if self.overall.value < floor:
            self.pause, self.next_pause = self.next_pause, min(2 * self.next_pause, PAUSE[1])
            self.overall = AcceptanceRate()


@dataclass
class SpeculationStats:
    """Statistics that outlive the engines in which they were collected.

    Attributes:
        verified: drafted tokens that were verified, up to the first wrong one of each draft.
        accepted: those of them that were right.
        drafters: statistics of each drafter, by its name.
    """

    verified: int = 0
    accepted: int = 0
    drafters: dict[str, DrafterStats] = field(default_factory=dict)

    def of(self, name: str) -> DrafterStats:
        """The statistics of the drafter of that name."""
        return self.drafters.setdefault(name, DrafterStats())
