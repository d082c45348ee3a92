"""The findings' criteria on made-up verdicts, the exact theory against brute force, and the page."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.findings.__main__ import DOCS, HERE, assemble, rebuild
from eddecode.audit.stats.paired import holm
from eddecode.errors import ConfigError
from eddecode.experiments.findings import criteria, page, plots, theory_exact
from eddecode.experiments.findings.criteria import ConditionResult
from eddecode.experiments.findings.depth import depth_excess, mean_profile
from eddecode.experiments.findings.experiment import (
    Experiment,
    ExperimentResult,
    ReplicatedResult,
    ResultTable,
)
from eddecode.experiments.findings.record import RunRecord
from eddecode.experiments.findings.run import EXPERIMENTS, ExperimentPlan, run_experiments
from eddecode.experiments.findings.size import ExperimentSize
from eddecode.experiments.findings.theory_trained import predicted_rate

N = 200


def flags(share: float, n: int = N) -> criteria.Flags:
    """The first requests of every ten are flagged: exact shares in both halves, nested in one another."""
    return np.arange(n) // 4 % 10 < round(10 * share)


def condition(alpha: float, rude: float, valid: float = 1.0) -> ConditionResult:
    zeros = np.zeros(N)
    return ConditionResult(alpha, flags(rude), flags(valid), np.ones(N, dtype=bool), zeros, zeros.astype(int))


# Criteria ------------------------------------------------------------------------------------------------------------


def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(60) < 0.6, rng.random(60) < 0.4
    more, fewer = sum(a & ~b), sum(b & ~a)
    below = sum(stats.binom.pmf(k, more + fewer, 0.5) for k in range(min(more, fewer) + 1))
    assert criteria.paired_p_value(a, b) == pytest.approx(min(1.0, 2 * below))
    assert criteria.paired_p_value(a, a) == 1.0
    assert criteria.paired_p_value(a, b) == criteria.paired_p_value(b, a)
    assert criteria.is_higher(flags(0.6), flags(0.4))
    assert not criteria.is_higher(flags(0.4), flags(0.6))


def test_mcnemar_keeps_its_level_and_the_best_alpha_is_not_biased_upward() -> None:
    """No α has an effect: the plain maximum is biased upward, the cross-fitted one is not."""
    rng, crossfitted, plain = np.random.default_rng(1), [], []
    alphas = np.arange(1, 9) / 10
    for _ in range(300):
        found = [
            ConditionResult(
                a,
                rng.random(N) < 0.5,
                np.ones(N, dtype=bool),
                np.ones(N, dtype=bool),
                np.zeros(N),
                np.zeros(N, int),
            )
            for a in alphas
        ]
        crossfitted.append(criteria.best_alpha(found).rude_and_valid.mean())
        plain.append(max(c.rude_and_valid.mean() for c in found))
    error = np.sqrt(0.25 / N / 300)  # of a mean of 300 unbiased estimates, each of standard error sqrt(.25/N)
    assert abs(np.mean(crossfitted) - 0.5) < 4 * error
    assert np.mean(plain) > 0.5 + 10 * error


def test_holm_adjusts_stepwise_and_some_higher_uses_it() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    one = np.zeros(N, dtype=bool)
    weak = one.copy()
    weak[:6] = True  # p = 2^-5: significant alone, not among three
    assert criteria.any_higher([weak], one)
    assert not criteria.any_higher([weak, one, one], one)


def test_best_takes_the_smallest_alpha_among_equals_within_a_bound_on_validity() -> None:
    conditions = [
        condition(0.3, 0.6),
        condition(0.6, 0.8, 0.8),
        condition(1.0, 0.8, 0.8),
        condition(2.0, 0.2),
    ]
    assert criteria.best_alpha(conditions).alpha == 0.6
    assert criteria.best_alpha(conditions).chosen == (0.6, 0.6)
    bounded = criteria.best_alpha(conditions, within=condition(0.0, 0.3))
    assert bounded.alpha == 0.3
    assert bounded.valid.mean() == 1.0
    assert criteria.best_alpha([condition(-1.0, 1.0), *conditions]).alpha == 0.6  # not ED


def test_a_curve_rises_and_falls_only_if_both_sides_are_significant() -> None:
    base = condition(0.0, 0.3)
    assert criteria.rises_then_falls(
        base, [condition(0.3, 0.6), condition(0.6, 0.9), condition(5.0, 0.9, 0.0)]
    )
    assert not criteria.rises_then_falls(base, [condition(0.3, 0.6), condition(5.0, 0.9)])
    assert not criteria.rises_then_falls(base, [condition(0.3, 0.3), condition(5.0, 0.0)])


def test_ratio_brackets_its_value_and_has_none_for_a_base_that_is_never_rude() -> None:
    times = criteria.rate_ratio(flags(0.8), flags(0.4))
    assert times.value == pytest.approx(2.0)
    assert 1.5 < times.low < 2.0 < times.high < 3.0
    assert criteria.rate_ratio(flags(0.8), flags(0.0)).value is None
    assert criteria.doubles_rate(criteria.best_alpha([condition(0.3, 0.8)]), condition(0.0, 0.0))


def test_the_first_tokens_are_compared_with_the_rest_within_each_text() -> None:
    texts = [[4.0, 2.0, 1.0, 1.0], [2.0, 2.0, 1.0], [9.0, 9.0]]  # the last one has no rest
    found = depth_excess(texts, depth=2)
    assert (found.first, found.rest, found.difference) == (2.5, 1.0, 1.5)
    half = stats.t.ppf(0.975, 1) * np.std([2.0, 1.0], ddof=1) / np.sqrt(2)
    assert (found.low, found.high) == pytest.approx((1.5 - half, 1.5 + half))
    assert mean_profile(texts) == {"kl": [5.0, 13 / 3, 1.0, 1.0], "count": [3, 3, 2, 1]}


# Theory --------------------------------------------------------------------------------------------------------------


def test_token_level_equals_a_walk_over_every_prefix() -> None:
    """Brute force: sum the sequences that begin with a prefix, contrast the two models there, multiply along."""
    pair, alpha, beta = theory_exact.EnumerablePair(3), 0.7, 0.5
    base, aligned = np.exp(pair.base), np.exp(pair.aligned(beta))
    found = pair.token_level(alpha, beta)
    shape = (theory_exact.VOCABULARY,) * theory_exact.LENGTH
    base, aligned = base.reshape(shape), aligned.reshape(shape)
    for sequence in [(0,) * 6, (3, 1, 0, 2, 2, 1), (1, 3, 3, 0, 1, 2)]:
        total = 0.0
        for t in range(theory_exact.LENGTH):
            prefix = sequence[:t]
            p, q = (np.array([m[(*prefix, v)].sum() for v in range(shape[0])]) for m in (base, aligned))
            z = (p / p.sum()) ** (1 + alpha) / (q / q.sum()) ** alpha
            total += np.log(z[sequence[t]] / z.sum())
        index = int(np.ravel_multi_index(sequence, shape))
        assert found[index] == pytest.approx(total, abs=1e-9)


def test_the_identity_holds_and_everything_is_a_distribution() -> None:
    pair = theory_exact.EnumerablePair(0)
    for alpha, beta in itertools.product((0.3, 2.0), (0.1, 1.0)):
        sequence = pair.sequence_level(alpha, beta)
        by_hand = np.exp(pair.base - alpha * pair.reward / beta)
        assert np.exp(sequence) == pytest.approx(by_hand / by_hand.sum(), abs=1e-12)
        for log_p in (sequence, pair.aligned(beta), pair.token_level(alpha, beta)):
            assert np.exp(log_p).sum() == pytest.approx(1.0)
    assert pair.token_level(0.0, 1.0) == pytest.approx(
        pair.base
    )  # α = 0 is the base, α = −1 the aligned model
    assert pair.token_level(-1.0, 0.5) == pytest.approx(pair.aligned(0.5))


def test_the_prediction_reweighs_the_world() -> None:
    counts = [np.array([0, 0, 0, 1]), np.array([0, 2])]
    assert predicted_rate(counts, 0.0) == pytest.approx((0.25 + 0.5) / 2)
    e = np.e
    assert predicted_rate(counts, 1.0) == pytest.approx((e / (3 + e) + e**2 / (1 + e**2)) / 2)
    assert predicted_rate(counts, -50.0) < 1e-9


# The run and its page ------------------------------------------------------------------------------------------------


def test_the_run_writes_every_finding_with_its_verdict(tmp_path: Path) -> None:
    plan = ExperimentPlan(
        tmp_path, ExperimentSize.quick(), seeds=1, only=("theory-identity", "theory-token-level")
    )
    record = run_experiments(plan, "the command")
    data = json.loads((tmp_path / "findings.json").read_text())["findings"]
    assert [entry["name"] for entry in data] == ["theory-identity", "theory-token-level"]
    assert set(data[0]) == {"name", "claim", "criterion", "reproduced", "measured", "figures"}
    assert set(data[0]["measured"]) == {"commit", "processor"}
    assert data[0]["reproduced"] is True
    assert data[0]["figures"]["seeds"][0]["worst"] < 1e-6
    markdown, web = page.write_page(record, tmp_path)
    assert "the command" in markdown.read_text()
    assert "findings/theory-identity.svg" in markdown.read_text()
    assert (tmp_path / "findings" / "theory-identity.svg").read_text().startswith("<svg")
    text = web.read_text()
    assert "<svg" in text
    assert "src=" not in text  # self-contained
    assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    before = text
    page.write_page(run_experiments(plan, "the command"), tmp_path)
    assert web.read_text() == before


def test_the_page_of_the_documents_is_the_runs_with_the_reading_at_its_end(tmp_path: Path) -> None:
    out, here, docs = (tmp_path / name for name in ("out", "here", "docs"))
    for folder in (out / "findings", here, docs / "findings"):
        folder.mkdir(parents=True)
    (out / "findings.md").write_text("# Page\n")
    (out / "findings.json").write_text('{"findings": []}\n')
    (out / "findings" / "new.svg").write_text("<svg/>")
    (docs / "findings" / "old.svg").write_text("<svg/>")  # of a finding that no longer exists
    (here / "reading.md").write_text("## Reading the page\n")
    assert assemble(out, here, docs).read_text() == "# Page\n\n## Reading the page\n"
    assert [path.name for path in (docs / "findings").iterdir()] == ["new.svg"]
    assert (here / "findings.json").read_text() == '{"findings": []}\n'


def test_the_page_is_rebuilt_from_the_recorded_run_alone(tmp_path: Path) -> None:
    here, docs = tmp_path / "here", tmp_path / "docs"
    shutil.copytree(HERE, here)
    docs.mkdir()
    assert rebuild(here, docs).read_text("utf-8") == (DOCS / "findings.md").read_text("utf-8")
    assert (here / "findings.json").read_bytes() == (HERE / "findings.json").read_bytes()
    pictures = {path.name for path in (docs / "findings").iterdir()}
    assert pictures == {path.name for path in (DOCS / "findings").iterdir()}
    (here / "findings.json").write_text('{"findings": [{"name": "reversl"}]}')
    with pytest.raises(
        ConfigError, match=r"findings.json does not hold the findings of a run \(KeyError: 'reversl'\)"
    ):
        rebuild(here, docs)


def test_the_documents_show_every_finding_as_the_raw_figures_have_it() -> None:
    data = json.loads((HERE / "findings.json").read_text("utf-8"))["findings"]
    text = (DOCS / "findings.md").read_text("utf-8")
    names = [entry["name"] for entry in data]
    measured = [experiment for experiment in EXPERIMENTS if experiment.name in names]
    assert names == [experiment.name for experiment in measured]
    for entry, experiment in zip(data, measured, strict=True):
        assert experiment.criterion in text
        assert entry["figures"]["said"][0] in text
        assert experiment.draw is None or (DOCS / "findings" / f"{experiment.name}.svg").exists()
    held = [e["reproduced"] for e, x in zip(data, measured, strict=True) if not x.question]
    assert f"{sum(held)} of {len(held)} reproduced." in text
    assert text.endswith((HERE / "reading.md").read_text("utf-8"))


def test_a_finding_is_reproduced_only_if_it_is_on_every_seed(tmp_path: Path) -> None:
    hit, miss = (
        ExperimentResult(True, "hit", {"x": float("inf")}),
        ExperimentResult(False, "miss <b>", {"x": 1.0}),
    )
    experiment = Experiment("made-up", 1, "Made up & tried", "c < d", "k", lambda harness: hit)
    assert ReplicatedResult(experiment, [hit, hit]).reproduced
    both = ReplicatedResult(experiment, [hit, miss])
    assert not both.reproduced
    assert both.to_dict()["figures"]["seeds"][0]["x"] is None  # JSON knows no infinity
    table = ResultTable("t | u", ("a",), [("1 | 2",)])
    shown = ReplicatedResult(experiment, [ExperimentResult(True, "hit", {}, [table]), miss])
    record = RunRecord("x", 2, asdict(ExperimentSize.quick()), 0, 0.0, {}, [shown])
    for path in page.write_page(record, tmp_path):
        text = path.read_text()
        assert "NOT reproduced (1 of 2 seeds)" in text
        assert ("1 \\| 2" in text) == (path.suffix == ".md")
        assert ("c &lt; d" in text) == (path.suffix == ".html")


def test_every_finding_says_what_it_claims_and_when_it_holds() -> None:
    assert len({experiment.name for experiment in EXPERIMENTS}) == len(EXPERIMENTS)
    assert {experiment.point for experiment in EXPERIMENTS} == set(range(1, 11))
    for experiment in EXPERIMENTS:
        assert experiment.claim.endswith(".")
        assert len(experiment.criterion) > 40


def test_headline_findings_alone_are_repeated_and_unknown_names_refused(tmp_path: Path) -> None:
    plan = ExperimentPlan(tmp_path, ExperimentSize(), seeds=3)
    again = {name for name, repetition in plan.tasks if repetition == 2}
    assert again == {experiment.name for experiment in EXPERIMENTS if experiment.headline}
    assert {"reversal", "alpha", "strength"} <= again
    assert len(plan.tasks) == len(set(plan.tasks)) == len(EXPERIMENTS) + 2 * len(again)
    assert [task for task in plan.tasks if task[0] == "reversal"] == [("reversal", k) for k in range(3)]
    with pytest.raises(ConfigError, match="no finding is called 'reversl'; expected one of reversal"):
        _ = ExperimentPlan(tmp_path, ExperimentSize(), only=("reversl",)).experiments


def test_styles_differ_in_colour_dash_and_marker() -> None:
    looks = [plots.style(i) for i in range(6)]
    for name in ("color", "marker", "linestyle"):
        assert len({str(look[name]) for look in looks}) == 6
