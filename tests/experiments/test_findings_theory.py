"""The closed form of the toy language slot by slot, and the theory by levels of the reward."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from eddecode.experiments.findings import theory_levels, theory_slots
from eddecode.experiments.findings.theory_trained import predicted_rate
from eddecode.testbed import language, rules


@pytest.mark.parametrize("mood", rules.MOODS)
def test_the_classes_are_the_language(mood: str) -> None:
    p, rude = theory_slots.reply_classes(mood)
    assert p.sum() == pytest.approx(1.0)
    assert p[rude > 0].sum() == pytest.approx(language.rude_rate(mood))  # another closed form
    rng, n = random.Random(4), 3000
    drawn = np.array(
        [
            language.count_rude(language.sample_reply(language.CustomerRequest("", mood, "lamp"), rng))
            for _ in range(n)
        ]
    )
    for words in range(5):
        share = float(p[rude == words].sum())
        assert abs((drawn == words).mean() - share) < 4 * math.sqrt(share * (1 - share) / n)
    z = math.exp(theory_slots.log_normalizer(mood, 0.5))
    weights = np.exp(-drawn / 0.5)
    assert abs(weights.mean() - z) < 4 * weights.std() / math.sqrt(n)


def test_slot_by_slot_equals_a_walk_over_every_prefix() -> None:
    """By hand: the weight of a prefix is the sum over all its continuations."""
    rng = np.random.default_rng(0)
    p = rng.random((2, 3, 2))
    p[0, 1, :] = 0.0  # a combination that does not occur
    p /= p.sum()
    q, alpha = theory_slots.tilted(p, rng.integers(0, 4, p.shape).astype(float), -1.3), 0.7
    found = theory_slots.slot_by_slot(p, q, alpha)

    def weight(prefix: tuple[int, ...]) -> float:
        b, a = (float(m[prefix].sum() / m[prefix[:-1]].sum()) for m in (p, q))
        return b ** (1 + alpha) / a**alpha if b > 0 else 0.0

    for at in itertools.product(*map(range, p.shape)):
        expected = 1.0
        for t in range(3):
            beside = sum(weight((*at[:t], i)) for i in range(p.shape[t])) if expected else 1.0
            expected *= weight(at[: t + 1]) / beside if expected else 0.0
        assert found[at] == pytest.approx(expected)
    assert theory_slots.slot_by_slot(p, q, 0.0) == pytest.approx(p)
    assert theory_slots.slot_by_slot(p, q, -1.0) == pytest.approx(q)


def test_divergence_by_slot_sums_to_the_whole_and_a_filter_costs_minus_log_of_what_it_keeps() -> None:
    for mood in rules.MOODS:
        p, rude = theory_slots.reply_classes(mood)
        q = theory_slots.filtered(p, rude)
        assert sum(theory_slots.slot_divergences(p, q)) == pytest.approx(
            -math.log(1 - language.rude_rate(mood))
        )
        tilted = theory_slots.tilted(p, rude, -1.5)
        whole = float((tilted[p > 0] * np.log(tilted[p > 0] / p[p > 0])).sum())
        assert sum(theory_slots.slot_divergences(p, tilted)) == pytest.approx(whole)
        opener, base = tilted.sum(axis=(1, 2)), p.sum(axis=(1, 2))
        assert theory_slots.slot_divergences(p, tilted)[0] == pytest.approx(
            float((opener * np.log(opener / base)).sum())
        )


def test_predictions_agree_with_reweighed_samples_and_slots_fall_short() -> None:
    rng = random.Random(9)
    counts = [
        np.array(
            [
                language.count_rude(language.sample_reply(language.CustomerRequest("", m, "lamp"), rng))
                for _ in range(4000)
            ]
        )
        for m in rules.MOODS
    ]
    for alpha, beta in ((-1.0, 1.0), (0.3, 1.0), (0.3, 0.3)):
        sequence, slots = theory_slots.predicted_rates(alpha, beta)
        assert (
            abs(sequence - predicted_rate(counts, alpha / beta)) < 0.03
        )  # a rate of 8000 samples, reweighed
        assert slots == pytest.approx(sequence) if alpha == -1 else slots < sequence


def test_noise_in_log_ratios_steepens_the_mean_of_logs_and_not_the_log_of_means() -> None:
    """Ratios exp(r/β) with log-normal noise of mean 1 whose variance grows with rudeness."""
    rng, beta, n = np.random.default_rng(5), 0.5, 20_000
    rude = np.repeat([0, 1, 2, 3], n)
    variance = 0.5 + 0.5 * rude
    y = -rude / beta + np.sqrt(variance) * rng.standard_normal(len(rude)) - variance / 2
    found = theory_levels.group_by_reward(np.append(rude, [7] * 5), np.append(y, np.zeros(5)), beta)
    assert [level["words"] for level in found] == [0, 1, 2, 3]  # five replies are too few
    assert theory_levels.slope(found, "log_mean") == pytest.approx(1.0, abs=0.05)
    assert theory_levels.slope(found, "mean") == pytest.approx(1.0 + 0.25 * beta, abs=0.02)
    assert [level["variance"] for level in found] == pytest.approx([0.5, 1.0, 1.5, 2.0], rel=0.05)


def test_rates_of_levels_are_counted_where_both_models_have_enough() -> None:
    base = np.array([[0, 0], [1, 1], [0, 0], [1, 2]] * 5)
    aligned = np.array([[0, 0], [0, 0], [0, 1], [0, 0]] * 5)
    found = [{"words": float(k), "expected": -k / 0.5} for k in range(3)]
    theory_levels.add_rates(found, base, aligned, log_z=0.1)
    assert [level["base"] for level in found] == [20, 15, 5]
    assert found[1]["log_rates"] == pytest.approx(math.log(5 / 15) + 0.1)
    assert "log_rates" not in found[2]  # the aligned model has no completion with two rude words
    assert theory_levels.slope(found, "log_rates", "weight") == pytest.approx(
        math.log(35 / 20 * 15 / 5) * 0.5
    )
    assert math.isnan(theory_levels.slope(found[2:], "log_rates", "weight"))
