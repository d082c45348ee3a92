"""Closed-form intervals: against their definitions in plain Python, and where data are few or rates are 0 or 1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eddecode.audit.stats.clusters import Clusters
from eddecode.audit.stats.mover import ClusteredRate, Combination, accepted_range
from eddecode.audit.stats.paired import abbott_index, difference, rate_estimate, ratio, remaining_fraction
from helpers.intervals import Condition, naive_combination, naive_rate, naive_ratio


def clusters(condition: Condition) -> Clusters:
    flagged, total = zip(*condition, strict=True)
    return Clusters(np.array(flagged, dtype=float), np.array(total, dtype=float))


@st.composite
def conditions(draw: st.DrawFn, count: int) -> list[list[tuple[float, float]]]:
    """Several conditions on the same 1 to 12 prompts, each prompt with its own number of completions."""
    prompts = draw(st.integers(1, 12))
    most = draw(st.sampled_from([1, 4, 40]))
    found = []
    for _ in range(count):
        total = draw(st.lists(st.integers(1, most), min_size=prompts, max_size=prompts))
        found.append([(float(draw(st.integers(0, t))), float(t)) for t in total])
    return found


@settings(max_examples=80, deadline=None)
@given(conditions(1), st.sampled_from([0.95, 0.96, 0.99]))
@example([[(0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 1.0), (2.0, 3.0)]], 0.99)
def test_a_rate_is_its_definition(found: list[list[tuple[float, float]]], level: float) -> None:
    (condition,) = found
    wanted, rate = naive_rate(condition, level), ClusteredRate.of(clusters(condition))
    assert rate.value == pytest.approx(wanted.value)
    assert rate.effective == pytest.approx(wanted.effective)
    assert rate.interval(level) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert float(rate.residuals.sum()) == pytest.approx(0, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    conditions(3),
    st.tuples(*[st.floats(-3, 3).filter(lambda c: abs(c) > 1e-6)] * 3),
    st.sampled_from([0.95, 0.99]),
)
def test_a_combination_is_its_definition(
    found: list[list[tuple[float, float]]], coefficients: tuple[float, float, float], level: float
) -> None:
    combined = Combination([clusters(each) for each in found], level)
    assert combined.estimate(coefficients) == pytest.approx(
        naive_combination(found, coefficients, level), abs=1e-9
    )


@settings(max_examples=12, deadline=None)
@given(conditions(2))
def test_a_ratio_ends_where_the_difference_reaches_0(found: list[list[tuple[float, float]]]) -> None:
    above, below = found
    a, b = clusters(above), clusters(below)
    estimate = ratio(a, b)
    if not a.flagged.any() or not b.flagged.any():
        assert estimate.low == 0 or not b.flagged.any()
        return
    low, high = naive_ratio(above, below, 0.95) if _bounded(above, below) else (None, None)
    if low is not None:
        assert estimate.low == pytest.approx(low, abs=1e-6)
        assert estimate.high == pytest.approx(high, rel=1e-6, abs=1e-6)


def _bounded(above: Condition, below: Condition) -> bool:
    """Whether 0 and 10⁴ are both outside the interval of the ratio."""
    low = naive_combination((above, below), (1.0, 0.0), 0.95)[1]
    high = naive_combination((above, below), (1.0, -1e4), 0.95)[2]
    return low > 0 and high < 0


@pytest.mark.parametrize(
    "condition",
    [
        [(1.0, 1.0)],
        [(0.0, 1.0)],
        [(2.0, 5.0)],
        [(5.0, 5.0)],
        [(1.0, 40.0), (0.0, 1.0)],
        [(0.25, 0.5), (0.5, 0.5), (0.0, 0.25)],  # a cross-fitted condition: counts that are not whole
        [(0.3, 1.0), (0.7, 1.0), (1.0, 1.0)],
    ],
)
def test_an_interval_holds_its_value_and_has_a_width(condition: list[tuple[float, float]]) -> None:
    c = clusters(condition)
    found = rate_estimate(c)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= c.rate <= found.high <= 1
    assert found.high - found.low > 0.1
    gap = difference(c, c)
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low < 0 < gap.high


def test_one_prompt_says_next_to_nothing() -> None:
    """Forty completions of one prompt are one observation, with no variance between prompts to be seen."""
    found = rate_estimate(clusters([(20.0, 40.0)]))
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.05
    assert found.high > 0.95
    assert found.standard_error is None


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize(("ed", "mitigated"), [(0.3, 0.0), (1.0, 0.0), (1.0, 1.0), (0.3, 0.3), (0.5, 0.02)])
def test_left_always_has_a_width(samples: int, ed: float, mitigated: float) -> None:
    """A base rate of 0 and a mitigated rate of 0 or of everything: never [0, 0] or [1, 1]."""

    def constant(rate: float) -> Clusters:
        flagged = np.zeros(50)
        flagged[: round(50 * rate)] = samples
        return Clusters(flagged, np.full(50, float(samples)))

    found = remaining_fraction(constant(mitigated), constant(ed), constant(0.0))
    assert found.value == pytest.approx(mitigated / ed)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    assert found.high - found.low > 0.03


def test_a_range_without_an_end() -> None:
    """None, and not the largest number that was looked at; `least` where the quantity has one."""
    assert accepted_range(lambda ratio: (-1.0, 1.0), 0.5) == (None, None)
    assert accepted_range(lambda ratio: (-1.0, 1.0), 0.5, least=0.0) == (0.0, None)
    low, high = accepted_range(lambda ratio: (ratio - 2, ratio - 1), 1.5)
    assert (low, high) == pytest.approx((1, 2))


def test_a_rate_of_0_below_the_line_bounds_from_below_alone() -> None:
    some, none = clusters([(1.0, 1.0)] * 20 + [(0.0, 1.0)] * 30), clusters([(0.0, 1.0)] * 50)
    found = ratio(some, none)
    assert (found.value, found.high) == (None, None)
    assert found.low is not None
    # at that λ the interval of (some − λ·none) begins at 0
    rates = ([(1.0, 1.0)] * 20 + [(0.0, 1.0)] * 30, [(0.0, 1.0)] * 50)
    assert naive_combination(rates, (1.0, -found.low), 0.95)[1] == pytest.approx(0, abs=1e-6)
    assert abbott_index(none, none).value == 0
