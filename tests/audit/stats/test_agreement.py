"""Agreement, a judge's measured errors, corrected rates, and human labels: closed forms and simulated coverage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from eddecode.audit.data.labels import by_rater, majority_vote, read_labels
from eddecode.audit.stats import agreement
from eddecode.audit.stats.agreement import (
    agreement_table,
    cohen_kappa,
    corrected_rate,
    judge_quality,
    rogan_gladen,
)
from eddecode.errors import JudgeError


def flags_of(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + first) + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return a, b


def within_binomial(hits: int, trials: int, share: float, tail: float = 1e-4) -> bool:
    """Whether `hits` is not below what a coverage of `share` gives with probability 1 − tail."""
    return hits >= binom.ppf(tail, trials, share)


# κ ---------------------------------------------------------------------------------------------------------------


def test_kappa_and_its_error_against_the_published_formula() -> None:
    a, b = flags_of(58, 4, 12, 31)
    found = cohen_kappa(a, b)
    n, cells = 105, np.array([[58, 4], [12, 31]]) / 105
    rows, columns = cells.sum(1), cells.sum(0)
    observed, expected = np.trace(cells), rows @ columns
    kappa = (observed - expected) / (1 - expected)
    # Fleiss, Cohen and Everitt (1969), the variance of κ away from 0, written out cell by cell.
    diagonal = sum(cells[i, i] * (1 - (rows[i] + columns[i]) * (1 - kappa)) ** 2 for i in range(2))
    off = (1 - kappa) ** 2 * sum(
        cells[i, j] * (columns[i] + rows[j]) ** 2 for i in range(2) for j in range(2) if i != j
    )
    variance = (diagonal + off - (kappa - expected * (1 - kappa)) ** 2) / (n * (1 - expected) ** 2)
    assert found.kappa == pytest.approx(kappa)
    assert found.standard_error == pytest.approx(math.sqrt(variance))
    assert (found.both, found.first, found.second, found.neither) == (58, 4, 12, 31)
    # An independent package's worked example (R, statpsych::ci.kappa(.05, 31, 12, 4, 58)): 0.6756757, SE 0.07344761.
    assert found.kappa == pytest.approx(0.6756757, abs=1e-7)
    assert found.standard_error == pytest.approx(0.07344761, abs=1e-8)
    assert found.low == pytest.approx(kappa - 1.96 * found.standard_error, abs=0.03)
    assert found.high == pytest.approx(kappa + 1.96 * found.standard_error, abs=0.03)


def test_kappa_at_its_ends() -> None:
    same = cohen_kappa(*flags_of(5, 0, 0, 15))
    assert (same.kappa, same.high) == (1.0, 1.0)
    assert same.low is not None
    assert 0.3 < same.low < 0.95  # twenty completions do not prove perfect agreement
    opposite = cohen_kappa(*flags_of(0, 10, 10, 0))
    assert opposite.kappa == -1
    one_sided = cohen_kappa(*flags_of(0, 10, 0, 10))
    assert one_sided.kappa == 0
    for nothing in (flags_of(0, 0, 0, 9), flags_of(9, 0, 0, 0)):
        undefined = cohen_kappa(*nothing)
        assert (undefined.kappa, undefined.low, undefined.agreement) == (None, None, 1.0)


def test_the_interval_of_kappa_covers() -> None:
    rng = np.random.default_rng(0)
    trials = 120
    for shares, n in (
        ((0.3, 0.1, 0.1, 0.5), 60),
        ((0.08, 0.02, 0.02, 0.88), 60),
        ((0.45, 0.03, 0.02, 0.5), 150),
    ):
        observed, expected = agreement._agreement(np.array([shares]))
        truth = float(((observed - expected) / (1 - expected))[0])
        hits = done = 0
        for cell in rng.choice(4, size=(trials, n), p=shares):
            found = cohen_kappa(cell < 2, (cell == 0) | (cell == 2))
            if found.low is not None and found.high is not None:
                done, hits = done + 1, hits + (found.low <= truth <= found.high)
        assert within_binomial(hits, done, 0.93), (shares, hits, done)


def test_completions_of_one_prompt_belong_together() -> None:
    rng = np.random.default_rng(1)
    shares = np.array((0.2, 0.05, 0.05, 0.7))
    observed, expected = agreement._agreement(shares[None])
    truth = float(((observed - expected) / (1 - expected))[0])
    trials, hits, naive = 80, 0, 0
    for _ in range(trials):
        own = rng.choice(4, size=(50, 4), p=shares)
        cell = np.where(rng.random((50, 4)) < 0.7, own[:, :1], own).ravel()
        a, b, prompts = cell < 2, (cell == 0) | (cell == 2), np.repeat(np.arange(50), 4).tolist()
        for clusters in (prompts, None):
            found = cohen_kappa(a, b, clusters)
            assert found.low is not None
            assert found.high is not None
            inside = found.low <= truth <= found.high
            hits, naive = hits + (inside and clusters is not None), naive + (inside and clusters is None)
    assert within_binomial(hits, trials, 0.93)
    assert not within_binomial(naive, trials, 0.93)  # leaving the prompts out would claim too much
    repeated = cohen_kappa(*(flag * 3 for flag in flags_of(6, 2, 2, 10)), [*range(20)] * 3)
    assert repeated.effective == pytest.approx(20)  # three copies of a completion are one


def test_every_two_judges_are_compared() -> None:
    a, b = flags_of(3, 1, 1, 5)
    table = agreement_table({"words": a, "guard": b, "people": a})
    assert list(table) == [("words", "guard"), ("words", "people"), ("guard", "people")]
    assert table["words", "people"].kappa == 1


def test_what_cannot_be_compared() -> None:
    with pytest.raises(JudgeError, match="no completions to compare"):
        cohen_kappa([], [])
    with pytest.raises(JudgeError, match="2 flags and 1 flags of the second judge"):
        cohen_kappa([True, False], [True])
    with pytest.raises(JudgeError, match="2 flags and 3 clusters"):
        cohen_kappa([True, False], [True, True], [1, 2, 3])
    with pytest.raises(JudgeError, match="neither true nor false"):
        cohen_kappa(np.array([0.5, 1]), np.array([True, False]))


# Corrected rates -------------------------------------------------------------------------------------------------


def test_rogan_gladen_undoes_a_judges_errors() -> None:
    for rate, sensitivity, specificity in ((0.0, 0.9, 0.8), (0.37, 0.7, 0.95), (1.0, 0.6, 0.6)):
        apparent = rate * sensitivity + (1 - rate) * (1 - specificity)
        assert rogan_gladen(apparent, sensitivity, specificity) == pytest.approx(rate)


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.5, 0.5), (0.3, 0.6), (0.1, 0.9), (0.0, 0.0)])
def test_a_judge_no_better_than_a_coin_corrects_nothing(sensitivity: float, specificity: float) -> None:
    with pytest.raises(JudgeError, match=r"add up to .*; expected more than 1\. .*take another judge"):
        rogan_gladen(0.3, sensitivity, specificity)


def test_a_judges_quality_is_counted_against_people() -> None:
    judge, human = flags_of(45, 6, 5, 94)  # judge first, people second
    quality = judge_quality(judge, human)
    assert (quality.sensitivity.hits, quality.sensitivity.total, quality.sensitivity.value) == (45, 50, 0.9)
    assert (quality.specificity.hits, quality.specificity.total, quality.specificity.value) == (94, 100, 0.94)
    assert quality.sensitivity.low < 0.9 < quality.sensitivity.high
    prompts = [i // 5 for i in range(150)]
    clustered = judge_quality(judge, human, prompts)
    assert clustered.sensitivity.effective <= 50
    for none, what in (([True] * 4, "harmless, .* specificity"), ([False] * 4, "harmful, .* sensitivity")):
        with pytest.raises(JudgeError, match=f"none of the 4 completions with human labels is {what}"):
            judge_quality([True, False, True, False], none)


def test_the_corrected_interval_by_hand() -> None:
    # 60 of 200 flagged; 45 of 50 and 94 of 100: Lang and Reiczigel (2014), equations 15-17, step by step.
    quality = judge_quality(*flags_of(45, 6, 5, 94))
    found = corrected_rate([(1, 1)] * 60 + [(0, 1)] * 140, quality)
    z = 1.959963984540054
    p, se, sp = (60 + z**2 / 2) / (200 + z**2), 46 / 52, 95 / 102
    true = (p + sp - 1) / (se + sp - 1)
    shift = 2 * z**2 * (true * se * (1 - se) / 52 - (1 - true) * sp * (1 - sp) / 102)
    variance = (
        p * (1 - p) / (200 + z**2) + true**2 * se * (1 - se) / 52 + (1 - true) ** 2 * sp * (1 - sp) / 102
    )
    half = z * math.sqrt(variance) / (se + sp - 1)
    assert found.rate == pytest.approx((0.3 + 0.94 - 1) / (0.9 + 0.94 - 1))
    assert (found.low, found.high) == (pytest.approx(true + shift - half), pytest.approx(true + shift + half))
    assert (found.apparent, found.note) == (0.3, "")


def test_the_corrected_interval_covers() -> None:
    rng = np.random.default_rng(2)
    trials = 400
    for truth, se, sp, n, n_se, n_sp in ((0.3, 0.9, 0.95, 200, 50, 50), (0.05, 0.8, 0.95, 300, 40, 100)):
        hits = 0
        for _ in range(trials):
            harmful = int(rng.binomial(n, truth))
            flagged = rng.binomial(harmful, se) + rng.binomial(n - harmful, 1 - sp)
            found_se, found_sp = rng.binomial(n_se, se), rng.binomial(n_sp, sp)
            quality = judge_quality(*flags_of(found_se, n_sp - found_sp, n_se - found_se, found_sp))
            found = corrected_rate([(1, 1)] * flagged + [(0, 1)] * (n - flagged), quality)
            hits += found.low - 1e-12 <= truth <= found.high + 1e-12
        assert within_binomial(hits, trials, 0.94), (truth, hits)


def test_samples_of_one_prompt_widen_the_corrected_interval() -> None:
    quality = judge_quality(*flags_of(45, 6, 5, 94))
    alone = corrected_rate([(1, 1)] * 60 + [(0, 1)] * 140, quality)
    together = corrected_rate([(4, 4)] * 15 + [(0, 4)] * 35, quality)
    assert together.rate == alone.rate
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_corrected_rates_at_the_edges() -> None:
    quality = judge_quality(*flags_of(45, 6, 5, 94))
    fewer = corrected_rate([(0, 1)] * 50, quality)
    assert (fewer.rate, fewer.low) == (0.0, 0.0)
    assert fewer.unclipped == pytest.approx(-0.06 / 0.84)
    assert "less than its false alarms alone would" in fewer.note
    assert corrected_rate([(1, 1)] * 50, quality).rate == 1.0
    weak = corrected_rate([(1, 1)] * 5 + [(0, 1)] * 5, judge_quality(*flags_of(2, 1, 1, 2)))
    assert (weak.low, weak.high) == (0.0, 1.0)
    assert "with 3 harmful and 3 harmless labels the judge is not clearly better than chance" in weak.note
    with pytest.raises(JudgeError, match="no completion to take a rate of"):
        corrected_rate([], quality)
    with pytest.raises(JudgeError, match="expected more than 1"):
        corrected_rate([(1, 2)], judge_quality(*flags_of(1, 5, 5, 1)))


# Human labels ----------------------------------------------------------------------------------------------------

HEADER = "condition,alpha,prompt_index,sample,harmful,rater\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_labels_are_read_settled_and_split_by_rater(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        HEADER + "ed,0.30,0,1,yes,a\ned,.3,0,1,NO,b\ned,0.3,0,1,1,c\nbase,0,2,0,false,a\nbase,0,2,0,true,b\n"
        "aligned,-1,3,0,,a\n",
    )
    labels = read_labels(path)
    assert len(labels) == 5  # the line without a label is work still to do
    settled = majority_vote(labels)
    assert settled.labels == {("ed", "0.3", 0, 1): True}  # α is one key however it is written
    assert settled.ties == (("base", "0", 2, 0),)
    raters = by_rater(labels)
    assert sorted(raters) == ["a", "b", "c"]
    assert raters["a"] == {("ed", "0.3", 0, 1): True, ("base", "0", 2, 0): False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("condition,alpha,prompt_index,sample\n", "lacks the column harmful; expected condition, alpha"),
        (HEADER + "ed,0.3,0,0,maybe,\n", r"labels.csv, line 2: harmful is 'maybe'; expected true or false"),
        (HEADER + "ed,much,0,0,yes,\n", "line 2: alpha 'much' is not a number"),
        (HEADER + "ed,0.3,first,0,yes,\n", "line 2: .*expected alpha, prompt_index and sample as an export"),
        (HEADER + ",0.3,0,0,yes,\n", "line 2: condition is empty"),
        (HEADER + "ed,0.3,0,0,,\n", "has no human label"),
        (HEADER + "ed,0.3,0,0,yes,a\ned,.3,0,0,no,a\n", "alpha 0.3, prompt 0, sample 0 twice from a"),
    ],
)
def test_labels_that_will_not_do(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        read_labels(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="there is no file of human labels"):
        read_labels(tmp_path / "none.csv")
