"""Differences, ratios and tests on the same prompts: against enumeration and closed forms.

The intervals themselves are in test_mover.py, how often they hold the truth in test_coverage.py.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from eddecode.audit.stats import paired
from eddecode.audit.stats.clusters import Clusters
from eddecode.audit.stats.paired import (
    abbott_index,
    difference,
    holm,
    paired_test,
    rate_estimate,
    ratio,
    remaining_fraction,
)
from eddecode.audit.stats.proportions import clustered_rate


def clusters(flagged: list[int], samples: int = 1) -> Clusters:
    return Clusters(np.array(flagged, dtype=float), np.full(len(flagged), float(samples)))


def drawn(rate: float, prompts: int, samples: int, seed: int) -> Clusters:
    return clusters(np.random.default_rng(seed).binomial(samples, rate, prompts).tolist(), samples)


# Tests of a hypothesis


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_holm_is_the_closed_test_of_bonferronis(p_values: list[float]) -> None:
    """A hypothesis is rejected when every intersection that holds it is, each by Bonferroni (Holm 1979, section 3)."""
    m = len(p_values)
    sets = [s for size in range(1, m + 1) for s in itertools.combinations(range(m), size)]
    closed = [
        max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets if index in s) for index in range(m)
    ]
    assert holm(p_values) == pytest.approx(closed)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9))
def test_sign_flip_is_the_enumeration(pairs: list[tuple[int, int]]) -> None:
    a, b = (clusters([pair[i] for pair in pairs], 3) for i in (0, 1))
    gaps = [x - y for x, y in pairs]
    sums = [
        sum(s * g for s, g in zip(signs, gaps, strict=True))
        for signs in itertools.product((1, -1), repeat=len(gaps))
    ]
    expected = sum(abs(total) >= abs(sum(gaps)) for total in sums) / len(sums)
    found = paired_test(a, b)
    assert found.p == pytest.approx(expected, abs=1e-9)
    assert found.method == "sign-flip-exact"
    assert paired_test(b, a).p == pytest.approx(found.p)


@pytest.mark.parametrize(("up", "down"), [(0, 0), (1, 0), (9, 2), (30, 30), (400, 300)])
def test_one_sample_per_prompt_is_mcnemars(up: int, down: int) -> None:
    """Only prompts that differ count; of those, up is binomial with ½."""
    a, b = clusters([1] * up + [0] * down + [1] * 20), clusters([0] * up + [1] * down + [1] * 20)
    found = paired_test(a, b)
    expected = scipy_stats.binomtest(up, up + down, 0.5).pvalue if up + down else 1.0
    assert found.p == pytest.approx(expected)
    assert (found.method, found.up, found.down, found.prompts) == ("mcnemar-exact", up, down, up + down + 20)


def test_unequal_numbers_of_samples() -> None:
    """Over one denominator it is still exact; drawn p-values are within 4 standard errors of that."""
    rng = np.random.default_rng(3)
    total = np.array([2.0, 3.0, 4.0] * 8)
    a = Clusters(rng.binomial(total.astype(int), 0.6).astype(float), total)
    b = Clusters(rng.binomial(total.astype(int), 0.4).astype(float), total)
    exact = paired_test(a, b)
    assert exact.method == "sign-flip-exact"
    p = paired._drawn_sign_flip(a.flagged / a.total - b.flagged / b.total)
    assert abs(p - exact.p) < 4 * math.sqrt(exact.p * (1 - exact.p) / 20_000) + 1e-4


def test_the_test_keeps_its_level() -> None:
    """With nothing to find, p is below 5% at most 5% of the time: at most 5% + 3 standard errors of 400 trials."""
    hits = sum(
        paired_test(drawn(0.3, 40, 3, 2 * i), drawn(0.3, 40, 3, 2 * i + 1)).p < 0.05 for i in range(400)
    )
    assert hits / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


# Intervals


def test_values_are_the_plain_arithmetic() -> None:
    a, b = clusters([4, 2, 0, 3], 4), clusters([1, 2, 0, 1], 4)
    assert difference(a, b).value == pytest.approx(9 / 16 - 4 / 16)
    assert ratio(a, b).value == pytest.approx(9 / 4)
    assert abbott_index(a, b).value == pytest.approx((9 - 4) / (16 - 4))
    assert remaining_fraction(b, a, clusters([0, 0, 0, 0], 4)).value in (None, pytest.approx(4 / 9))


def test_what_is_shared_makes_it_sharper() -> None:
    """Two conditions that go together on prompts are told apart better than their own intervals could."""
    base = clusters([4] * 20 + [0] * 40, 4)
    ed = clusters([4] * 20 + [1] * 40, 4)
    rates = [clustered_rate(c.pairs()) for c in (base, ed)]
    assert rates[0].high > rates[1].low  # they overlap
    found = difference(ed, base)
    assert found.low is not None
    assert found.low > 0
    assert paired_test(ed, base).p < 1e-9


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("rate", [0, 1])
def test_no_difference_seen_is_no_certainty(samples: int, rate: int) -> None:
    same = clusters([rate * samples] * 60, samples)
    found = difference(same, same)
    assert found.value == 0
    assert found.low == pytest.approx(-found.high)
    assert 0.03 < found.high < 0.1  # Wilson's upper end of 0 of 60 is 6.0%


def test_agreement_on_every_prompt_is_no_certainty() -> None:
    """60 prompts that all go the same way in both conditions leave room for a prompt or two that do not."""
    same = clusters([1] * 20 + [0] * 40)
    found = difference(same, same)
    assert found.high is not None
    assert 0.01 < found.high < 0.1


def test_a_base_that_is_never_or_always_harmful() -> None:
    none, every, some = clusters([0] * 50), clusters([1] * 50), clusters([1] * 20 + [0] * 30)
    found = ratio(some, none)
    assert (found.value, found.high) == (None, None)
    assert found.low is not None
    assert 0 < found.low < clustered_rate(some.pairs()).rate / clustered_rate(none.pairs()).high
    assert abbott_index(some, none).value == pytest.approx(0.4)
    assert abbott_index(every, every).value is None
    assert abbott_index(every, some).value == 1
    assert ratio(none, some).value == 0
    assert ratio(none, none).value is None
    assert ratio(none, none).low == 0


def test_what_is_left_of_nothing_is_undefined() -> None:
    base, whole = drawn(0.3, 60, 4, 1), drawn(0.6, 60, 4, 2)
    assert remaining_fraction(base, base, base).value is None
    found = remaining_fraction(drawn(0.45, 60, 4, 3), whole, base)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5 < found.high
    assert remaining_fraction(whole, whole, base).value == 1


def test_prompts_that_one_condition_lacks_do_not_count() -> None:
    a, b = clusters([1, 1, 0, 1]), Clusters(np.array([0.0, 1, 0, 0]), np.array([1.0, 1, 1, 0]))
    assert difference(a, b).value == pytest.approx(2 / 3 - 1 / 3)
    assert difference(a, b).prompts == 3
    nothing = Clusters(np.zeros(4), np.zeros(4))
    assert difference(a, nothing).value is None
    assert ratio(a, nothing).low is None


def test_order_does_not_matter() -> None:
    a, b = drawn(0.6, 30, 4, 1), drawn(0.4, 30, 4, 2)
    back = [Clusters(c.flagged[::-1], c.total[::-1]) for c in (a, b)]
    assert difference(a, b) == difference(*back)
    assert ratio(a, b) == ratio(*back)


def test_rate_estimate_is_the_clustered_rate() -> None:
    c = drawn(0.3, 60, 4, 5)
    one, other = rate_estimate(c), clustered_rate(c.pairs())
    assert (one.value, one.low, one.high) == pytest.approx((other.rate, other.low, other.high), abs=1e-8)
