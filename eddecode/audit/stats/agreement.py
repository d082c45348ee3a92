"""The agreement of judges, and the harm rate corrected for a judge's own errors.

- Cohen's κ (Educational and Psychological Measurement 20, 1960) between two judges, with the large-sample standard
  error of Fleiss, Cohen and Everitt (Psychological Bulletin 72, 1969) in its linearized form, which also gives the
  design effect of several completions per prompt. The interval is not ±1.96 standard errors, which has no width at
  κ = 1 and covers badly where few completions are flagged. It is the central interval of κ when the probabilities of
  the four cells have Jeffreys' Dirichlet(½) prior, with the counts scaled to the effective number of completions.
- A judge's sensitivity and specificity against human labels, and the rate corrected by them: Rogan and Gladen (American
  Journal of Epidemiology 107, 1978), (apparent + Sp − 1)/(Se + Sp − 1), with the interval of Lang and Reiczigel
  (Preventive Veterinary Medicine 113, 2014, equations 15–17), which accounts for Se and Sp being estimates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from eddecode.audit.stats.estimates import CorrectedRate, Estimate
from eddecode.audit.stats.proportions import DECIMALS, effective_size, wilson
from eddecode.errors import JudgeError

_DRAWS = 20_000
_SEED = 20240811  # fixed, so that the same data give the same table

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


# Agreement -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kappa:
    """Agreement of two judges beyond chance.

    Attributes:
        kappa: Cohen's κ; None where both judges give all completions one flag, so that κ is not defined.
        low, high: its interval; None with it.
        standard_error: of Fleiss, Cohen and Everitt, with the design effect; 0 at κ = 1.
        agreement, expected: share of completions on which they agree, and the share expected by chance.
        both, first, second, neither: completions flagged by both, by one alone, by none.
        n, effective: completions, and the number of independent ones with the same information.
    """

    kappa: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    agreement: float
    expected: float
    both: int
    first: int
    second: int
    neither: int
    n: int
    effective: float


def cohen_kappa(
    first: Sequence[bool] | Bools,
    second: Sequence[bool] | Bools,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> Kappa:
    """Cohen's κ of two judges' flags on the same completions.

    Args:
        first, second: flags (n,), in the same order.
        clusters: the prompt of each completion, (n,); None: all are independent.
        level: of the interval.

    Raises:
        JudgeError: nothing to compare, or lists of different lengths.
    """
    a, b = _flags(first), _flags(second)
    _same_length(len(a), len(b), "flags of the second judge")
    groups = _groups(clusters, len(a))
    table = np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]], dtype=np.float64)
    both, one, other, neither = (int(count) for count in table.ravel())
    n = len(a)
    observed, expected = _agreement(table.ravel()[None] / n)
    if expected[0] == 1:
        worth = float(groups.max() + 1)
        return Kappa(None, None, None, None, 1.0, 1.0, both, one, other, neither, n, worth)
    kappa = float((observed[0] - expected[0]) / (1 - expected[0]))
    influence = _influence(a, b, table / n, kappa, float(expected[0]))
    effective, error = _effective(influence, groups)
    low, high = _dirichlet_interval(table.ravel() * effective / n, level)
    return Kappa(
        kappa=kappa,
        low=min(low, kappa),
        high=max(high, kappa),
        standard_error=error,
        agreement=float(observed[0]),
        expected=float(expected[0]),
        both=both,
        first=one,
        second=other,
        neither=neither,
        n=n,
        effective=effective,
    )


def agreement_table(
    flags: Mapping[str, Sequence[bool] | Bools],
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> dict[tuple[str, str], Kappa]:
    """κ of every two judges, in the order given; each has a flag for every completion, in the same order."""
    return {
        (one, other): cohen_kappa(flags[one], flags[other], clusters, level)
        for one, other in itertools.combinations(flags, 2)
    }


def _agreement(cells: Floats) -> tuple[Floats, Floats]:
    """(observed, chance agreement) of tables (T, 4) of shares: both, first, second, neither."""
    both, first, second, neither = cells.T
    a, b = both + first, both + second
    return both + neither, a * b + (1 - a) * (1 - b)


def _influence(a: Bools, b: Bools, shares: Floats, kappa: float, expected: float) -> Floats:
    """The influence of each completion on κ, to first order, (n,); their variance over n is that of Fleiss 1969."""
    p_a, p_b = shares[0].sum(), shares[:, 0].sum()  # shares flagged by each
    agree = (a == b).astype(np.float64)
    chance = np.where(a, p_b, 1 - p_b) + np.where(b, p_a, 1 - p_a)  # (n,), mean 2·expected
    values: Floats = (agree - (1 - kappa) * chance) / (1 - expected)
    centered: Floats = values - values.mean()
    return centered


def _effective(influence: Floats, groups: npt.NDArray[np.intp]) -> tuple[float, float]:
    """(number of independent completions with the same information, standard error of κ)."""
    n, k = len(influence), int(groups.max()) + 1
    independent = float((influence**2).sum()) / n**2
    if k == n:
        return float(n), math.sqrt(independent)
    if (
        independent == 0
    ):  # all agree: the design effect cannot be estimated, and the most cautious value is taken
        return float(k), 0.0
    sums = np.bincount(groups, weights=influence, minlength=k)
    clustered = float((sums**2).sum()) / n**2 * k / (k - 1) if k > 1 else math.inf
    effective = min(max(n * independent / clustered, float(k)), float(n)) if clustered else float(n)
    return effective, math.sqrt(independent * n / effective)


def _dirichlet_interval(counts: Floats, level: float) -> tuple[float, float]:
    """Central interval of κ for cell counts (4,) under Jeffreys' prior."""
    draws = np.random.default_rng(_SEED).dirichlet(counts + 0.5, size=_DRAWS)
    observed, expected = _agreement(draws)
    low, high = np.quantile((observed - expected) / (1 - expected), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# A judge's errors ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """A share with its Wilson interval.

    Attributes:
        value: hits / total. low, high: the interval's ends.
        hits, total: completions. effective: number of independent ones with the same information.
    """

    value: float
    low: float
    high: float
    hits: int
    total: int
    effective: float


@dataclass(frozen=True)
class JudgeQuality:
    """A judge against human labels: shares of harmful completions flagged, and of harmless ones not flagged."""

    sensitivity: Share
    specificity: Share


def judge_quality(
    judge: Sequence[bool] | Bools,
    human: Sequence[bool] | Bools,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> JudgeQuality:
    """Sensitivity and specificity from completions with human labels.

    The labeled completions must have been chosen without the judge's verdict: with mostly flagged ones the measured
    sensitivity is too high.

    Args:
        judge, human: flags (n,) on the same completions.
        clusters: each completion's prompt, (n,); None: all are independent.

    Raises:
        JudgeError: no completion is labeled harmful, or none harmless, so that one of the two shares is not defined.
    """
    flags, truth = _flags(judge), _flags(human)
    _same_length(len(flags), len(truth), "human labels")
    groups = _groups(clusters, len(flags))
    for what, count in (("harmful", int(truth.sum())), ("harmless", int((~truth).sum()))):
        if count == 0:
            raise JudgeError(
                f"none of the {len(truth)} completions with human labels is {what}, so the judge's "
                f"{'sensitivity' if what == 'harmful' else 'specificity'} cannot be measured; label more, until both "
                "kinds are there"
            )
    return JudgeQuality(
        _share(flags[truth], groups[truth], level), _share(~flags[~truth], groups[~truth], level)
    )


def _share(hits: Bools, groups: npt.NDArray[np.intp], level: float) -> Share:
    _, index = np.unique(groups, return_inverse=True)
    pairs = zip(np.bincount(index, weights=hits), np.bincount(index), strict=True)
    effective = effective_size([(int(hit), int(total)) for hit, total in pairs])
    value = float(hits.mean())
    return Share(value, *wilson(value, effective, level), int(hits.sum()), len(hits), effective)


def check_better_than_chance(quality: JudgeQuality) -> None:
    """Check that rates can be corrected by a judge's errors.

    Raises:
        JudgeError: sensitivity + specificity ≤ 1: the judge is no better than a coin.
    """
    rogan_gladen(0.0, quality.sensitivity.value, quality.specificity.value)


def rogan_gladen(apparent: float, sensitivity: float, specificity: float) -> float:
    """True rate from the rate that an imperfect judge finds; may leave [0, 1].

    Raises:
        JudgeError: sensitivity + specificity ≤ 1: the judge is no better than chance.

    >>> round(rogan_gladen(0.3, 0.8, 0.9), 4)
    0.2857
    """
    youden = sensitivity + specificity - 1
    if youden <= 1e-12:
        raise JudgeError(
            f"the judge's sensitivity ({sensitivity:.3f}) and specificity ({specificity:.3f}) add up to "
            f"{sensitivity + specificity:.3f}; expected more than 1. Such a judge flags harmless completions as "
            "often as harmful ones, and no rate can be corrected by it: take another judge, or see whether its flag is "
            "the wrong way round"
        )
    return (apparent + specificity - 1) / youden


def corrected_rate(
    clusters: Iterable[tuple[int, int]], quality: JudgeQuality, level: float = 0.95
) -> CorrectedRate:
    """The harm rate corrected for the judge's measured errors.

    Lang and Reiczigel's interval for samples of effective sizes n, n_Se and n_Sp: the rate with z²/2 successes in z²
    trials added, Se and Sp with one success in two added, Rogan and Gladen's estimate of these, a shift of
    2z²·(P·Se(1−Se)/n_Se − (1−P)·Sp(1−Sp)/n_Sp), and ±z standard errors by the delta method. Where Se + Sp is not
    clearly above 1 at this level, the data give no bounds and the interval is [0, 1].

    Args:
        clusters: (flagged, completions) per prompt, as `Store.clusters` gives them.
        quality: from `judge_quality`; the labeled completions count as independent of those of the rate.

    Raises:
        JudgeError: no completion, or sensitivity + specificity ≤ 1.
    """
    pairs = [(int(flagged), int(total)) for flagged, total in clusters if total]
    if not pairs:
        raise JudgeError(
            "there is no completion to take a rate of; expected (flagged, completions) per prompt"
        )
    se, sp = quality.sensitivity, quality.specificity
    apparent = sum(flagged for flagged, _ in pairs) / sum(total for _, total in pairs)
    estimate = rogan_gladen(apparent, se.value, sp.value)
    rate = min(max(estimate, 0.0), 1.0)
    interval = _lang_reiczigel(apparent, effective_size(pairs), se, sp, level)
    notes = []
    if interval is None:
        interval = (0.0, 1.0)
        notes.append(
            f"with {se.total} harmful and {sp.total} harmless labels the judge is not clearly better than chance: the "
            "interval says nothing; label more completions"
        )
    if estimate != rate:
        side = (
            "less than its false alarms alone would"
            if estimate < 0
            else "more than it could with these errors"
        )
        notes.append(f"the judge flagged {side} (estimate {estimate:.3f} before it was brought into 0..1)")
    low, high = min(interval[0], rate), max(interval[1], rate)
    rate, low, high, estimate = (round(figure, DECIMALS) for figure in (rate, low, high, estimate))
    return CorrectedRate(rate, low, high, level, apparent, estimate, "; ".join(notes))


def corrected_difference(a: CorrectedRate, b: CorrectedRate) -> Estimate:
    """Corrected rate of a less that of b, where each was corrected by the judge's errors in its own condition.

    MOVER of the two intervals (Zou and Donner, Statistics in Medicine 27, 2008), taken as uncorrelated: the errors of
    the judge are measured on different completions, and two conditions on the same prompts vary together, which would
    only narrow the interval.
    """
    value = a.rate - b.rate
    low = value - math.hypot(a.rate - a.low, b.high - b.rate)
    high = value + math.hypot(a.high - a.rate, b.rate - b.low)
    value, low, high = (round(end, DECIMALS) for end in (value, max(low, -1.0), min(high, 1.0)))
    return Estimate(value, low, high, method="mover", level=a.level)


def _lang_reiczigel(
    apparent: float, n: float, se: Share, sp: Share, level: float
) -> tuple[float, float] | None:
    """Equations 15–17 within [0, 1]; None where Se + Sp − 1 is not above 0 at this level."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate = (n * apparent + z * z / 2) / (n + z * z)
    sens = (se.effective * se.value + 1) / (se.effective + 2)
    spec = (sp.effective * sp.value + 1) / (sp.effective + 2)
    v_rate = rate * (1 - rate) / (n + z * z)
    v_sens = sens * (1 - sens) / (se.effective + 2)
    v_spec = spec * (1 - spec) / (sp.effective + 2)
    youden = sens + spec - 1
    if youden <= z * math.sqrt(v_sens + v_spec):
        return None
    true = (rate + spec - 1) / youden
    shift = 2 * z * z * (true * v_sens - (1 - true) * v_spec)
    half = z * math.sqrt(v_rate + true**2 * v_sens + (1 - true) ** 2 * v_spec) / youden
    return min(max(true + shift - half, 0.0), 1.0), min(max(true + shift + half, 0.0), 1.0)


# Checks ----------------------------------------------------------------------------------------------------------


def _flags(values: Any) -> Bools:
    flags = np.asarray(values)
    if flags.ndim != 1 or not len(flags):
        raise JudgeError("there are no completions to compare; expected one flag per completion")
    if flags.dtype != np.bool_ and not np.isin(flags, (0, 1)).all():
        raise JudgeError("a flag is neither true nor false; expected booleans")
    return flags.astype(np.bool_)


def _same_length(n: int, other: int, what: str) -> None:
    if n != other:
        raise JudgeError(f"there are {n} flags and {other} {what}; expected one each per completion")


def _groups(clusters: Sequence[Hashable] | None, n: int) -> npt.NDArray[np.intp]:
    """Clusters as numbers from 0 up, (n,)."""
    if clusters is None:
        return np.arange(n)
    _same_length(n, len(clusters), "clusters")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
