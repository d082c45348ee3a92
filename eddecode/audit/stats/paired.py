"""Two conditions on the same prompts: the size of their difference, and whether there is one.

A prompt with a harmful completion under one condition is likely to have one under the other. So overlapping intervals
do not show that two conditions are alike; the difference on the same prompts is judged instead.

- Intervals of a difference and of a ratio: paired cluster bootstrap over prompts, both conditions resampled
  together (Davison and Hinkley 1997, section 3.8), percentile; widened where necessary to contain the interval that
  the two rates' own Wilson intervals imply (at their effective sizes): square-and-add with the correlation between
  the two, Newcombe's method 10 (Statistics in Medicine 17, 1998, 2635-2650), generalised as MOVER by Zou and Donner
  (Statistics in Medicine 27, 2008), for the ratio on the logarithms. Widened for the same reason as in `proportions`:
  a bootstrap only returns values observed in the data, which is too narrow where few prompts are flagged. Newcombe's
  continuity correction of the correlation is kept: without it, two conditions that agree on every prompt in the data
  would be certain to agree on all others.
- Tests: with one completion per prompt McNemar's (Psychometrika 12, 1947), exact; with several the sign-flip test
  of the per-prompt difference (Fisher, "The Design of Experiments", 1935, section 21): under the hypothesis the two
  conditions of a prompt could be swapped. Its distribution is computed exactly, by convolution (Pagano and
  Tritchler, JASA 78, 1983); with one completion per prompt it is McNemar's.
- Several α's are several tests: p-values are adjusted by Holm (Scandinavian Journal of Statistics 6, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eddecode.audit.stats.estimates import LEVEL, Estimate
from eddecode.audit.stats.proportions import (
    RESAMPLES,
    Floats,
    effective,
    resampled_sums,
    round_for_output,
    wilson,
)

BOOTSTRAP = "paired-bootstrap"
_WIDEST = 1_000_000  # largest support of an exact sign-flip distribution; beyond it signs are drawn
_FLIPS = 20_000
_SEED = 20240811


@dataclass(frozen=True)
class Clusters:
    """Counts of one condition per prompt.

    Attributes:
        flagged, total: completions of each distinct prompt, (prompts,) float64; row i is the same prompt in every
            condition of a run. They need not be integers: a cross-fitted condition is a mean of several.
    """

    flagged: Floats
    total: Floats

    @property
    def rate(self) -> float:
        """Flagged over total, pooled; NaN without completions."""
        total = float(self.total.sum())
        return float(self.flagged.sum()) / total if total else math.nan

    @property
    def complement(self) -> Clusters:
        """The completions that are not flagged."""
        return Clusters(self.total - self.flagged, self.total)

    def pairs(self) -> list[tuple[int, int]]:
        """(flagged, total) per prompt, for `clustered_rate`."""
        return list(zip(self.flagged.astype(int).tolist(), self.total.astype(int).tolist(), strict=True))


def shared(*conditions: Clusters) -> list[Clusters]:
    """The conditions on the prompts that all of them have completions of."""
    kept = np.logical_and.reduce([c.total > 0 for c in conditions])
    return [Clusters(c.flagged[kept], c.total[kept]) for c in conditions]


# Intervals ---------------------------------------------------------------------------------------------------------


def rate_estimate(condition: Clusters, level: float = LEVEL, resamples: int = RESAMPLES) -> Estimate:
    """The rate of one condition; like `clustered_rate`, for counts that need not be integers."""
    (c,) = shared(condition)
    if not len(c.total):
        return undefined("cluster-bootstrap", level)
    low, high = wilson(c.rate, effective(c.flagged, c.total), level)
    sums = resampled_sums(_columns(c), resamples)
    drawn = np.quantile(sums[:, 0] / sums[:, 1], _ends(level))
    error = _spread(_residuals(c) / c.total.sum())
    return estimate(
        c.rate, min(low, drawn[0]), max(high, drawn[1]), error, len(c.total), "cluster-bootstrap", level
    )


def difference(a: Clusters, b: Clusters, level: float = LEVEL, resamples: int = RESAMPLES) -> Estimate:
    """Rate of a − rate of b, on the prompts that both have."""
    a, b = shared(a, b)
    if not len(a.total):
        return undefined(BOOTSTRAP, level)
    value = a.rate - b.rate
    sums = resampled_sums(_columns(a, b), resamples)
    drawn = np.quantile(sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3], _ends(level))
    (la, ua), (lb, ub), r = _own(a, level), _own(b, level), _correlation(a, b)
    low = value - square_and_add(a.rate - la, ub - b.rate, r)
    high = value + square_and_add(ua - a.rate, b.rate - lb, r)
    error = _spread(_residuals(a) / a.total.sum() - _residuals(b) / b.total.sum())
    ends = (max(min(low, drawn[0]), -1.0), min(max(high, drawn[1]), 1.0))
    return estimate(value, *ends, error, len(a.total), BOOTSTRAP, level)


def ratio(a: Clusters, b: Clusters, level: float = LEVEL, resamples: int = RESAMPLES) -> Estimate:
    """Rate of a / rate of b; with a rate of 0 for b it has no value, and only a lower bound."""
    a, b = shared(a, b)
    if not len(a.total):
        return undefined(BOOTSTRAP, level)
    low, high = _ratio_of_wilsons(a, b, level)
    if b.rate == 0:
        return estimate(None, low, None, None, len(a.total), BOOTSTRAP, level)
    sums = resampled_sums(_columns(a, b), resamples)
    over, under = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = over / under
    ends = _ends(level)
    # 0/0 has no value: it counts as 0 for the lower end and as infinity for the upper one. The quantile is an order
    # statistic, because an interpolation between two is not defined where one of them is infinite.
    low = min(low, float(np.quantile(np.nan_to_num(drawn, nan=0.0, posinf=np.inf), ends[0], method="lower")))
    high = max(high, float(np.quantile(np.where(np.isnan(drawn), np.inf, drawn), ends[1], method="higher")))
    value = a.rate / b.rate
    error = None
    if a.rate > 0:
        error = value * _spread(_residuals(a) / a.flagged.sum() - _residuals(b) / b.flagged.sum())
    return estimate(value, low, high, error, len(a.total), BOOTSTRAP, level)


def relative_decrease(a: Clusters, b: Clusters, level: float = LEVEL, resamples: int = RESAMPLES) -> Estimate:
    """1 − rate of a / rate of b; negative where a has the higher rate."""
    kept = ratio(a, b, level, resamples)
    value, low, high = (
        None if end is None else round_for_output(1 - end) for end in (kept.value, kept.high, kept.low)
    )
    return Estimate(value, low, high, kept.standard_error, kept.prompts, kept.method, kept.level)


def abbott_index(a: Clusters, b: Clusters, level: float = LEVEL, resamples: int = RESAMPLES) -> Estimate:
    """(rate of a − rate of b) / (1 − rate of b): Abbott's formula (J. Economic Entomology 18, 1925)."""
    return relative_decrease(a.complement, b.complement, level, resamples)


def remaining_fraction(
    a: Clusters, whole: Clusters, base: Clusters, level: float = LEVEL, resamples: int = RESAMPLES
) -> Estimate:
    """(a − base) / (whole − base): the remaining part of an uplift; undefined unless that is clearly above 0."""
    a, whole, base = shared(a, whole, base)
    if not len(a.total):
        return undefined(BOOTSTRAP, level)
    sums = resampled_sums(_columns(a, whole, base), resamples)
    rates = sums[:, ::2] / sums[:, 1::2]  # (resamples, 3)
    above = rates[:, 1] - rates[:, 2]
    if np.quantile(above, _ends(level)[0]) <= 0 or whole.rate <= base.rate:
        return undefined(BOOTSTRAP, level, len(a.total))
    usable = above > 0
    low, high = np.quantile((rates[usable, 0] - rates[usable, 2]) / above[usable], _ends(level))
    value = (a.rate - base.rate) / (whole.rate - base.rate)
    parts = [_residuals(c) / c.total.sum() for c in (a, whole, base)]
    error = _spread((parts[0] - parts[2]) - value * (parts[1] - parts[2])) / (whole.rate - base.rate)
    return estimate(value, min(low, value), max(high, value), error, len(a.total), BOOTSTRAP, level)


def estimate(
    value: float | None,
    low: float | None,
    high: float | None,
    error: float | None,
    prompts: int,
    method: str,
    level: float = LEVEL,
) -> Estimate:
    """An estimate of rounded figures; an end that is not finite becomes None."""
    value, low, high, error = (round_for_output(figure) for figure in (value, low, high, error))
    return Estimate(value, low, high, error, prompts, method, level)


def undefined(method: str, level: float = LEVEL, prompts: int = 0) -> Estimate:
    """An estimate without a value."""
    return Estimate(None, None, None, None, prompts, method, level)


def _columns(*conditions: Clusters) -> Floats:
    """Columns (prompts, 2·conditions): flagged, total of each."""
    return np.stack([column for c in conditions for column in (c.flagged, c.total)], axis=1)


def _ends(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _residuals(c: Clusters) -> Floats:
    residuals: Floats = c.flagged - c.rate * c.total
    return residuals


def _spread(parts: Floats) -> float:
    """Standard error of a sum of one part per prompt, whose mean is 0 by construction."""
    n = len(parts)
    return math.sqrt(n / (n - 1) * float((parts**2).sum())) if n > 1 else math.inf


def _own(c: Clusters, level: float) -> tuple[float, float]:
    return wilson(c.rate, effective(c.flagged, c.total), level)


def _correlation(a: Clusters, b: Clusters) -> float:
    """Correlation of the two rates, from per-prompt residuals, with Newcombe's continuity correction 1/(2n).

    n is the effective size: with one sample per prompt that is the number of prompts.
    """
    n = math.sqrt(effective(a.flagged, a.total) * effective(b.flagged, b.total))
    x, y = _residuals(a) / a.total.mean(), _residuals(b) / b.total.mean()
    spread = math.sqrt(float((x**2).mean()) * float((y**2).mean()))
    if spread == 0:
        return 0.0
    together = float((x * y).mean())
    if together > 0:
        together = max(together - 1 / (2 * n), 0.0)
    return min(max(together / spread, -1.0), 1.0)


def square_and_add(one: float, other: float, r: float) -> float:
    """Half-width of a difference's interval from those of its terms, with correlation r (Newcombe 1998, method 10)."""
    return math.sqrt(max(one**2 + other**2 - 2 * r * one * other, 0.0))


def _ratio_of_wilsons(a: Clusters, b: Clusters, level: float) -> tuple[float, float]:
    """MOVER on the logarithms; where one of the rates is 0, the ratio of the outermost ends."""
    (la, ua), (lb, ub) = _own(a, level), _own(b, level)
    if min(a.rate, b.rate, la, lb) <= 0:
        return la / ub, (ua / lb if lb > 0 else math.inf)
    r, middle = _correlation(a, b), math.log(a.rate / b.rate)
    below = square_and_add(math.log(a.rate / la), math.log(ub / b.rate), r)
    above = square_and_add(math.log(ua / a.rate), math.log(b.rate / lb), r)
    return math.exp(middle - below), math.exp(middle + above)


# Tests -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedTest:
    """Whether two conditions differ on the same prompts.

    Attributes:
        p: two-sided; 1 where no prompt differs.
        method: `mcnemar-exact`, `sign-flip-exact`, or `sign-flip` (drawn).
        prompts: number compared; up, down: those with a higher, with a lower rate in the first condition.
    """

    p: float
    method: str
    prompts: int
    up: int
    down: int


def paired_test(a: Clusters, b: Clusters) -> PairedTest:
    """Two-sided test that swapping two conditions prompt by prompt changes nothing.

    The statistic is the sum over prompts of the difference of the two rates.
    """
    a, b = shared(a, b)
    # Over one common denominator the differences are integers, so that ties of the statistic are exact.
    denominators = {int(t) for t in np.concatenate([a.total, b.total])} or {1}
    common = math.lcm(*denominators) if max(denominators) <= 64 else 0
    whole = bool(np.all(a.flagged % 1 == 0) and np.all(b.flagged % 1 == 0)) and 0 < common <= 10_000
    gaps = a.flagged / a.total - b.flagged / b.total
    counts = len(gaps), int((gaps > 1e-12).sum()), int((gaps < -1e-12).sum())
    if counts[1] + counts[2] == 0:
        return PairedTest(1.0, "mcnemar-exact" if denominators == {1} else "sign-flip-exact", *counts)
    if denominators == {1} and whole:
        from scipy import stats as distributions  # slow to import, and only these tests need it

        p = float(distributions.binomtest(counts[1], counts[1] + counts[2], 0.5).pvalue)
        return PairedTest(p, "mcnemar-exact", *counts)
    steps = np.rint(gaps * common).astype(np.int64)
    if whole and np.abs(steps).sum() <= _WIDEST:
        return PairedTest(_sign_flip(steps), "sign-flip-exact", *counts)
    return PairedTest(_drawn_sign_flip(gaps), "sign-flip", *counts)


def _sign_flip(steps: np.ndarray) -> float:
    """P(|sum of ± steps| ≥ |sum of steps|) with fair signs, exactly.

    The steps of one magnitude give a binomial distribution; the distribution of the sum is the convolution of these.
    All steps are divided by their greatest common divisor first, which keeps the arrays short.
    """
    from scipy import signal
    from scipy import stats as distributions

    observed = abs(int(steps.sum()))
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    divisor = math.gcd(*(int(size) for size in sizes))
    observed, sizes = observed // divisor, sizes // divisor
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        one = np.zeros(size * count + 1)  # how many of them are positive, `size` apart
        one[::size] = distributions.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.clip(signal.convolve(chances, one), 0.0, None)
    top = len(chances) - 1  # index i is the sum 2i − top
    sums = 2 * np.arange(len(chances)) - top
    return float(min(chances[np.abs(sums) >= observed].sum(), 1.0))


def _drawn_sign_flip(gaps: Floats) -> float:
    """The same with drawn signs: (hits + 1)/(draws + 1), Phipson and Smyth (SAGMB 9, 2010)."""
    rng, observed, hits = np.random.default_rng(_SEED), abs(float(gaps.sum())) - 1e-9, 0
    step = max(1, 2_000_000 // len(gaps))
    for start in range(0, _FLIPS, step):
        signs = rng.integers(0, 2, size=(min(step, _FLIPS - start), len(gaps)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ gaps) >= observed).sum())
    return (hits + 1) / (_FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given; compared to a level, they bound the family-wise error rate by it.

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, running, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
