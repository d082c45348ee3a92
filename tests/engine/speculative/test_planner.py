"""How many tokens captured steps draft, by acceptance and cost."""

from __future__ import annotations

from typing import Any

import pytest

from eddecode.engine.speculative.planner import BASE_ALONE, DraftPlanner, planner_of
from eddecode.engine.speculative.stats import PAUSE, SpeculationStats
from eddecode.execution.drafted_step import DraftPlan


class Drafter:
    """A drafter of fixed cost."""

    def __init__(self, name: str, cost: float) -> None:
        self.name, self.is_base, self._cost = name, name == "base", cost

    def cost(self, num_sequences: int) -> float:
        return self._cost * num_sequences


def planner(*costs: tuple[str, float], forced: int | None = None) -> DraftPlanner:
    drafters: Any = [Drafter(*each) for each in costs]
    return DraftPlanner(drafters, SpeculationStats(), forced)


@pytest.mark.parametrize(
    ("acceptance", "cost", "expected"), [(0.95, 0.05, 7), (0.8, 0.3, 3), (0.5, 0.4, 1), (0.5, 0.6, 0)]
)
def test_the_length_that_gives_most_tokens_for_the_time(
    acceptance: float, cost: float, expected: int
) -> None:
    made = planner(("ngram", cost))
    made.stats.of("ngram").overall.value = acceptance
    assert made.plan(1).length == expected
    by_hand = [
        (1 - acceptance ** (k + 1)) / (1 - acceptance) / (1 + k * cost) if k else 1.0 for k in (0, 1, 3, 7)
    ]
    assert (0, 1, 3, 7)[by_hand.index(max(by_hand))] == expected


def test_the_better_drafter_is_used_and_many_rows_need_no_drafts() -> None:
    made = planner(("ngram", 0.05), ("base", 0.5))
    assert made.plan(1).source == "ngram"
    made.stats.of("ngram").overall.value = 0.06
    assert made.plan(1) == DraftPlan("base", 1)
    assert made.plan(2).length == 0  # a pass of the base costs as much as a step
    assert 0.5 * BASE_ALONE < 0.8 < 2 * 0.5 * BASE_ALONE


def test_a_drafter_that_is_wrong_pauses_and_is_tried_again() -> None:
    made = planner(("ngram", 0.3))
    plan = made.plan(1)
    assert plan.length == 3
    steps = 0
    while made.plan(1).length:
        made.count(plan, [0])
        steps += 1
    assert 2 < steps < 10
    assert (made.stats.verified, made.stats.accepted) == (steps, 0)
    for _ in range(PAUSE[0]):
        assert made.plan(1).length == 0
        made.count(DraftPlan(), [0])
    assert made.plan(1).length > 0


def test_only_tokens_up_to_the_first_wrong_one_count() -> None:
    made = planner(("ngram", 0.1), forced=3)
    assert made.plan(4) == DraftPlan("ngram", 3)
    made.count(DraftPlan("ngram", 3), [3, 1, 0])
    assert (made.stats.accepted, made.stats.verified) == (4, 6)
    made.count(DraftPlan("ngram", 3), [])  # all rows ended: nothing is known
    assert made.stats.verified == 6


def test_an_assistant_needs_the_host() -> None:
    both: Any = [Drafter("ngram", 0.1), Drafter("assistant", 0.1)]
    assert planner_of(both, SpeculationStats(), None) is None
    assert planner_of(both[:1], SpeculationStats(), None) is not None
