"""Criteria of equivalence, ranking, trend and depth in closed form; results pooled over seeds; earlier results kept."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from eddecode.errors import ConfigError
from eddecode.experiments.findings import (
    alignment_methods,
    criteria,
    marginal_risk,
    page,
    reward_ranking,
    strength_trend,
)
from eddecode.experiments.findings.criteria import ConditionResult
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ReplicatedResult
from eddecode.experiments.findings.paired_counts import PairedCounts
from eddecode.experiments.findings.ranking import auc
from eddecode.experiments.findings.record import RunRecord
from eddecode.experiments.findings.run import EXPERIMENTS, ExperimentPlan, run_experiments
from eddecode.experiments.findings.size import ExperimentSize

N = 900


def conditions(first: int, second: int, both: int = 600, n: int = N) -> tuple[criteria.Flags, criteria.Flags]:
    return PairedCounts(both, first, second, n - both - first - second).flags


# Equivalence ---------------------------------------------------------------------------------------------------------


def test_equivalence_needs_evidence_and_not_only_the_lack_of_a_difference() -> None:
    """At n = 900 with 40 discordant requests the difference has a standard error of 0.7 points; at n = 60 of 9."""
    many, few = conditions(20, 20), conditions(15, 15, both=20, n=60)
    assert criteria.is_equivalent(*many)
    assert not criteria.is_higher(*few)
    assert not criteria.is_equivalent(*few)
    assert not criteria.is_equivalent(*conditions(80, 10))  # 7.8 points apart


def test_the_test_of_equivalence_is_a_ninety_percent_interval_within_the_margin() -> None:
    """Near the margin it agrees with the two z-tests of a paired difference, of standard error sqrt(b + c − d²/n)/n."""
    for first, second in ((30, 60), (24, 60), (21, 60), (9, 60), (60, 9)):
        gap = (first - second) / N
        error = math.sqrt(first + second - (first - second) ** 2 / N) / N
        bound = stats.norm.ppf(0.95)
        ends = gap - bound * error, gap + bound * error
        if min(abs(abs(end) - criteria.MARGIN) for end in ends) < 0.002:
            continue  # the closed forms differ by less than that here
        a, b = conditions(first, second)
        assert criteria.is_equivalent(a, b) == (ends[0] > -criteria.MARGIN and ends[1] < criteria.MARGIN)
        assert criteria.is_not_lower(a, b) == (ends[0] > -criteria.MARGIN)


def test_counts_of_pairs_give_back_every_paired_statistic() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(80) < 0.6, rng.random(80) < 0.4
    counts = PairedCounts.of(a, b)
    assert criteria.paired_p_value(*counts.flags) == criteria.paired_p_value(a, b)
    assert criteria.rate_difference(*counts.flags).low == pytest.approx(criteria.rate_difference(a, b).low)
    twice = PairedCounts.pool([counts.to_list(), counts.to_list()])
    assert sum(twice.to_list()) == 160
    assert twice.first == 2 * counts.first


def test_methods_are_judged_over_all_seeds_together() -> None:
    """7 of 300 fewer on each seed is significant on none, and over three seeds it is."""
    weak = PairedCounts(240, 3, 12, 45)
    same = PairedCounts(250, 4, 4, 42)
    assert criteria.paired_p_value(*weak.flags) > 0.0251  # after Holm's adjustment of two
    figures = {"pairs": {alignment_methods.DISTILLED: weak.to_list(), "other": same.to_list()}}
    results = [ExperimentResult(False, "", figures)] * 3
    pooled = alignment_methods.pool(results)
    assert pooled.holds
    assert pooled.summary == (
        f"over 3 seeds, less than the filter: {alignment_methods.DISTILLED}; within 5 points of it: "
        f"{alignment_methods.DISTILLED}, other; neither shown: none"
    )
    assert not alignment_methods.pool(results[:1]).holds
    assert "minus filter, points" in pooled.tables[0].columns
    assert pooled.figures["other"]["equivalent"]


# Ranking -------------------------------------------------------------------------------------------------------------


def test_auc_is_the_chance_of_a_higher_score_and_its_error_that_of_delong() -> None:
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 6, 40).astype(float)  # with ties
    flagged = rng.random(40) < 0.4
    x, y = scores[flagged], scores[~flagged]
    won = (x[:, None] > y) + 0.5 * (x[:, None] == y)  # (m, n)
    error = math.sqrt(won.mean(1).var(ddof=1) / len(x) + won.mean(0).var(ddof=1) / len(y))
    found = auc(scores, flagged)
    assert found.value == pytest.approx(won.mean())
    assert found.value == pytest.approx(stats.mannwhitneyu(x, y).statistic / len(x) / len(y))
    assert found.error == pytest.approx(error)
    assert found.interval[0] < found.value < found.interval[1]
    perfect = auc(np.arange(10.0), np.arange(10) > 4)
    assert (perfect.value, perfect.error, perfect.interval) == (1.0, 0.0, (1.0, 1.0))


def test_the_reward_is_ranked_where_both_kinds_are_there() -> None:
    def condition(alpha: float, rude: int) -> ConditionResult:
        flags, ones = np.arange(60) < rude, np.ones(60, dtype=bool)
        return ConditionResult(alpha, flags, ones, ones, -1.0 * flags, np.ones(60, int))

    area = reward_ranking.ranking(condition(0.0, 20))
    assert area is not None
    assert area.value == 1.0
    assert reward_ranking.ranking(condition(2.0, 55)) is None


# Strength and damage -------------------------------------------------------------------------------------------------


def test_the_classes_part_of_the_divergence_is_that_of_two_coins() -> None:
    n = 9999
    half, tenth = np.arange(n) % 2 == 0, np.arange(n) % 10 == 0
    expected = stats.entropy([0.1, 0.9], [0.5, 0.5])
    assert strength_trend.class_divergence(tenth, half) == pytest.approx(expected, abs=1e-3)
    assert strength_trend.class_divergence(half, half) == 0.0


def test_the_trend_is_a_regression_with_an_intercept_per_group() -> None:
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=40), ["a", "b"] * 20
    y = 3 * x + rng.normal(size=40)
    line = stats.linregress(x, y)
    one = strength_trend.regress(y, x[:, None], ["a"] * 40)
    assert one.slopes[0] == pytest.approx(line.slope)
    assert one.halves[0] == pytest.approx(stats.t.ppf(0.975, 38) * line.stderr)
    shifted = y + np.array([0.0 if g == "a" else 100.0 for g in groups])
    again = strength_trend.regress(shifted, x[:, None], groups)
    assert again.slopes[0] == pytest.approx(strength_trend.regress(y, x[:, None], groups).slopes[0])
    assert strength_trend.regress(y[:3], rng.normal(size=(3, 2)), ["a"] * 3).halves == (math.inf, math.inf)


def test_attempts_double_up_to_the_completions_of_a_request() -> None:
    assert marginal_risk.attempts_up_to(4) == [1, 2, 4]
    assert marginal_risk.attempts_up_to(7) == [1, 2, 4]


# Pooled results, questions, earlier results --------------------------------------------------------------------------


def test_a_pooled_result_decides_and_a_question_is_answered_and_not_counted(tmp_path: Path) -> None:
    yes, no = ExperimentResult(True, "yes", {"x": 1.0}), ExperimentResult(False, "no", {"x": 2.0})
    finding = Experiment("made-up", 1, "Made up", "A claim.", "k", lambda harness: yes)
    pooled = replace(
        finding,
        name="pooled",
        question=True,
        pool=lambda results: ExperimentResult(sum(r.holds for r in results) > 1, "most of them", {}),
    )
    results = [ReplicatedResult(finding, [yes, no]), ReplicatedResult(pooled, [yes, yes, no])]
    assert [r.reproduced for r in results] == [False, True]
    record = RunRecord("x", 3, asdict(ExperimentSize.quick()), 0, 0.0, {}, results)
    text = page.write_page(record, tmp_path)[0].read_text()
    assert "0 of 1 reproduced." in text
    assert "Answer: **yes (3 seeds together)**\n\nMost of them." in text


def test_earlier_results_are_kept_with_the_commit_that_measured_them(tmp_path: Path) -> None:
    plan = ExperimentPlan(tmp_path, ExperimentSize.quick(), seeds=1, only=("theory-identity",))
    run_experiments(plan, "first")
    path = tmp_path / "earlier.json"
    data = json.loads((tmp_path / "findings.json").read_text())
    data["findings"][0]["measured"] = {"commit": "abc1234", "processor": "another"}
    path.write_text(json.dumps(data))
    earlier = RunRecord.read(path, EXPERIMENTS)
    record = run_experiments(replace(plan, only=("theory-token-level",)), "second", earlier=earlier)
    assert [r.measured["commit"] == "abc1234" for r in record.results] == [True, False]
    text = page.write_page(record, tmp_path)[0].read_text()
    assert "Measured at commit abc1234 on another: `theory-identity`." in text
    data["findings"][0]["criterion"] = "Another one."
    path.write_text(json.dumps(data))
    with pytest.raises(
        ConfigError, match="theory-identity was judged by another criterion; measure it again"
    ):
        RunRecord.read(path, EXPERIMENTS)
    outdated: list[str] = []
    assert RunRecord.read(path, EXPERIMENTS, outdated).results == []
    assert outdated == ["theory-identity"]
