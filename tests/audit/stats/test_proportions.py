"""The intervals of rates against closed forms; test_coverage.py has how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from eddecode.audit.stats.mover import rate_interval
from eddecode.audit.stats.proportions import clustered_rate, effective_size, wilson


@pytest.mark.parametrize(("flagged", "n"), [(0, 10), (1, 10), (7, 20), (60, 60), (300, 1000)])
def test_wilson_is_scipys(flagged: int, n: int) -> None:
    expected = scipy_stats.binomtest(flagged, n).proportion_ci(0.95, method="wilson")
    assert wilson(flagged / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_one_completion_per_prompt_gets_wilsons_interval() -> None:
    rate = clustered_rate([(1, 1)] * 7 + [(0, 1)] * 13)
    assert (rate.low, rate.high) == pytest.approx(wilson(7 / 20, 20), abs=1e-9)
    assert (rate.method, rate.flagged, rate.total, rate.prompts) == ("wilson", 7, 20, 20)


@pytest.mark.parametrize("truth", [0.005, 0.995])
def test_near_0_and_1_an_interval_covers(truth: float) -> None:
    """The exact chance to hold the truth, from 20 to 200 prompts: Wilson's is as low as 84%, that of a rate is not."""
    least = {wilson: 1.0, rate_interval: 1.0}
    for n in range(20, 201, 5):
        chances = scipy_stats.binom.pmf(np.arange(n + 1), n, truth)
        for interval, value in least.items():
            ends = [interval(flagged / n, n) for flagged in range(n + 1)]
            held = [low - 1e-12 <= truth <= high + 1e-12 for low, high in ends]
            least[interval] = min(value, float(chances[held].sum()))
    assert least[wilson] < 0.85
    assert least[rate_interval] > 0.97


def test_samples_that_agree_count_once() -> None:
    """Four identical samples a prompt say no more than one; four independent ones say more."""
    agreeing = clustered_rate([(4, 4)] * 30 + [(0, 4)] * 70)
    single = wilson(0.3, 100)
    assert agreeing.high - agreeing.low == pytest.approx(single[1] - single[0], rel=0.06)
    assert effective_size([(4, 4)] * 30 + [(0, 4)] * 70) == pytest.approx(100, rel=0.02)
    rng = np.random.default_rng(1)
    independent = clustered_rate([(int(k), 4) for k in rng.binomial(4, 0.3, size=100)])
    assert independent.high - independent.low < 0.7 * (agreeing.high - agreeing.low)


@pytest.mark.parametrize("samples", [1, 4])
def test_nothing_flagged_is_no_certainty(samples: int) -> None:
    none, every = clustered_rate([(0, samples)] * 60), clustered_rate([(samples, samples)] * 60)
    assert (none.low, none.rate) == (0.0, 0.0)
    assert none.high == pytest.approx(
        wilson(0, 60)[1], rel=0.06
    )  # with Student's t where there are several samples
    assert (every.rate, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 - none.high)


def test_prompts_without_completions_do_not_count() -> None:
    assert clustered_rate([(1, 2), (0, 0), (0, 2)]).prompts == 2
    with pytest.raises(ValueError, match="no completion"):
        clustered_rate([(0, 0)])


def test_same_data_same_interval_in_any_order() -> None:
    clusters = [(i % 5, 4) for i in range(31)]
    assert clustered_rate(clusters) == clustered_rate(clusters[::-1])
