"""Figures that need no judge: means of implied rewards, KL between the models, and the reward by position."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from eddecode.audit.analysis.implied_reward import depth_profile, kl_estimates, mean_estimate
from eddecode.audit.conditions import ALIGNED, BASE
from helpers.columns import columns


def test_means_are_students_when_clusters_are_alike() -> None:
    values = np.random.default_rng(0).normal(3, 2, 40)
    found = mean_estimate(values, np.ones(40))
    low, high = scipy_stats.t.interval(0.95, 39, values.mean(), scipy_stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high), abs=1e-3)


def test_kl_is_unbiased_and_covered() -> None:
    """Two models of 4 words and 3 tokens: the mean over 300 runs is the exact KL within 4 standard errors.

    At least 92% of the intervals hold it: were it 95%, fewer than 276 of 300 would be a chance of 0.7%.
    """
    p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 0.2, 0.3, 0.3])
    exact = 3 * float((p * np.log(p / q)).sum()), 3 * float((q * np.log(q / p)).sum())
    rng = np.random.default_rng(4)
    seen = []
    for _ in range(300):
        b, a = (rng.choice(4, size=(120, 3), p=own) for own in (p, q))
        reward = [np.log(q[x] / p[x]).sum(1) for x in (b, a)]
        rows = np.repeat(np.arange(60), 2)
        found = kl_estimates(columns(reward[0], rows), columns(reward[1], rows), {"temperature": 1.0})
        seen.append((found.base_aligned, found.aligned_base))
    for i, truth in enumerate(exact):
        values = np.array([pair[i].value for pair in seen])
        assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(300) + 5e-4
        assert np.mean([pair[i].low <= truth <= pair[i].high for pair in seen]) >= 0.92


@pytest.mark.parametrize(
    "changed", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}, {"plausibility": 0.1}]
)
def test_no_kl_of_another_distribution(changed: dict[str, float]) -> None:
    found = kl_estimates(columns([1.0, 2.0]), columns([1.0, 2.0]), changed)
    assert found.base_aligned is None
    assert f"sampled with {next(iter(changed))}" in found.note


def test_an_infinite_divergence_is_not_a_number() -> None:
    found = kl_estimates(columns([-math.inf, 2.0]), columns([1.0, 2.0]), {})
    assert found.base_aligned.value is None
    assert "infinite" in found.note


def test_depth_profile_is_the_mean_by_position() -> None:
    kept = [[-1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 0.0], [3.0]]

    class Kept:
        def rewards(self, key: str) -> Iterator[array[float]]:
            return iter(array("f", values) for values in kept)

    store: Any = Kept()
    found = depth_profile(store, BASE, columns([0.0, 0, 0], rows=[0, 1, 1]))
    assert found is not None
    assert [(p.first, p.last, p.completions) for p in found.positions] == [
        *((0, 0, 3), (1, 1, 2), (2, 3, 1), (4, 4, 1))
    ]
    assert [p.mean for p in found.positions] == pytest.approx([1, 1, 3.5, 5])
    assert depth_profile(store, ALIGNED, columns([0.0, 0])) is None
