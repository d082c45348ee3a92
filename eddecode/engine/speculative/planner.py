"""How tokens are drafted in captured steps: by which drafter, and how many.

A captured step drafts on the device, a fixed number of tokens for every row (`eddecode.execution.drafted_step`). If
each is right with probability a, and costs c plain steps, a step of k drafted tokens adds 1 + a + … + aᵏ tokens for the
price of 1 + k·c plain steps. The drafter and the k for which that is most are used, none where it never pays. How
acceptance is followed is the same as where drafts are made between steps, and what a drafter costs nearly is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

from eddecode.engine.speculative.drafters import Drafter
from eddecode.engine.speculative.stats import SpeculationStats
from eddecode.execution.drafted_step import DraftPlan, DraftSource

# A plain step runs two models side by side, in 1.53 times the time of one on an H200 (docs/gpu.md), so that the base by
# itself takes more than its share of it.
BASE_ALONE = 2 / 1.53
LENGTHS = (1, 3, 7)  # drafted tokens of a step: each number is a step that has to be captured


class DraftPlanner:
    """See `eddecode.engine.draft.Planner`.

    Args:
        drafters: which the device can do, in the order of preference.
        stats: of all engines.
        num_draft_tokens: draft this many tokens by the first drafter at every step.
    """

    def __init__(
        self, drafters: Sequence[Drafter], stats: SpeculationStats, num_draft_tokens: int | None = None
    ) -> None:
        self.drafters, self.stats, self.num_draft_tokens = drafters, stats, num_draft_tokens
        self._costs: dict[str, float] = {}  # of the sequences that the plan is for

    def plan(self, num_sequences: int) -> DraftPlan:
        """See `Planner.plan`."""
        self._costs = {
            drafter.name: drafter.cost(num_sequences) * (BASE_ALONE if drafter.is_base else 1.0)
            for drafter in self.drafters
        }
        if self.num_draft_tokens is not None:
            return DraftPlan(_source(self.drafters[0]), self.num_draft_tokens)
        best, most = DraftPlan(), 1.0  # token a plain step
        for drafter in self.drafters:
            stats, cost = self.stats.of(drafter.name), self._costs[drafter.name]
            for length in LENGTHS if stats.pause == 0 else ():
                rate = sum(stats.overall.value**i for i in range(length + 1)) / (1 + length * cost)
                if rate > most:
                    best, most = DraftPlan(_source(drafter), length), rate
        return best

    def count(self, plan: DraftPlan, right: Sequence[int]) -> None:
        """See `Planner.count`."""
        for drafter in self.drafters:
            stats = self.stats.of(drafter.name)
            stats.pause = max(0, stats.pause - 1)
        accepted, wrong = sum(right), sum(n < plan.length for n in right)
        if plan.length and right:
            self.stats.accepted += accepted
            self.stats.verified += accepted + wrong
            self.stats.of(plan.source).add_step(accepted / (accepted + wrong), self._costs[plan.source])


def planner_of(
    drafters: Sequence[Drafter], stats: SpeculationStats, num_draft_tokens: int | None
) -> DraftPlanner | None:
    """A planner for these drafters, or None if one of them cannot draft on the device."""
    if not drafters or any(drafter.name not in get_args(DraftSource) for drafter in drafters):
        return None
    return DraftPlanner(drafters, stats, num_draft_tokens)


def _source(drafter: Drafter) -> DraftSource:
    return cast(DraftSource, drafter.name)
