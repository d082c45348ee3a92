"""Closed-form intervals of rates, and of linear combinations and ratios of rates, over prompts as clusters.

The building block is the rate of one condition with an effective sample size n*:

- Variance: the delete-one-prompt jackknife of the ratio estimator, Σᵢ (rᵢ/(1 − hᵢ))²·(k − 1)/k with rᵢ the residual of
  prompt i and hᵢ its share of the completions (Cameron and Miller, J. Human Resources 50, 2015, section VI.B: the
  CR3 correction). With equal counts it is the usual between-cluster variance; a prompt with many completions
  counts as what it is.
- n* = p(1 − p)/variance (Kish, "Survey Sampling", 1965), between (Σm)²/Σm², as if all completions of a prompt were
  one observation, and the number of completions. Where all completions agree no variance can be estimated, and n*
  is the lower of the two. Half a prompt's weight of that most cautious variance is mixed in always, since with few
  prompts the estimate is itself noisy.
  The mean of graded values, such as scores in [0, 1], may vary less than any share: there n* has no upper end.
- Interval: Wilson's (JASA 22, 1927) at n*, with the quantile of Student's t at (Σm²)²/Σm⁴ − 1 degrees of freedom (never
  more than prompts − 1); the normal quantile where every prompt has one completion, since nothing is estimated then.
  With fewer than 5 flagged (or unflagged) completions in n* it covers too rarely on the side of 0 (or 1): one flagged
  completion excludes rates that give one in six audits (Brown, Cai and DasGupta, Statistical Science 16, 2001, who take
  an exact end there). That end is then the exact one of Clopper and Pearson (Biometrika 26, 1934), where it is wider.

From these, MOVER (Zou and Donner, Statistics in Medicine 27, 2008; for two rates Newcombe's method 10, ibid. 17, 1998,
2635-2650): the distance from the estimate Σ cⱼpⱼ to its lower end is √(Σ dⱼ² + 2 Σ rⱼₗdⱼdₗ), dⱼ being that of cⱼpⱼ
and rⱼₗ the correlation of the two rates over prompts, with Newcombe's continuity correction: without it two conditions
that agree on every prompt seen would be certain to agree on all others. A ratio is the set of all λ for which the
interval of (numerator − λ·denominator) holds 0 (Fieller, J. Royal Statistical Society B 16, 1954): such an
interval has no width 0 and needs no logarithm of a rate that is 0.

Nothing is drawn at random: the same data give the same figures, in any order of the prompts.
`python -m eddecode.audit.stats.coverage` simulates how often these intervals hold the truth.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from eddecode.audit.stats.clusters import Clusters, Floats
from eddecode.audit.stats.estimates import LEVEL

_FEW = 5  # flagged or unflagged completions in n*, below which the end on their side is an exact one
CAUTION = 0.5  # prompts' weight of the most cautious variance
_LARGEST_RATIO = 1e4  # beyond it a ratio is not bounded
_HALVINGS = 60


@dataclass(frozen=True)
class ClusteredRate:
    """The rate of one condition, and how well the prompts determine it.

    Attributes:
        value: flagged over total.
        effective: n*, how many independent completions the data are worth.
        freedom: degrees of freedom of the variance; infinite where none was estimated.
        residuals: (prompts,), each prompt's part in the error of the rate; they sum to 0.
    """

    value: float
    effective: float
    freedom: float
    residuals: Floats

    @classmethod
    def of(cls, condition: Clusters) -> ClusteredRate:
        """From flagged and total per prompt, (prompts,) each; every total above 0."""
        total, k = condition.total, len(condition.total)
        n = float(total.sum())
        value = min(max(float(condition.flagged.sum()) / n, 0.0), 1.0)
        residuals: Floats = (condition.flagged - value * total) / n
        fewest = min(n**2 / float((total**2).sum()), n)  # counts of a cross-fitted condition may be below 1
        if not condition.graded and bool((np.abs(total - 1) < 1e-9).all()):
            return cls(value, fewest, math.inf, residuals)
        freedom = min(fewest, float((total**2).sum()) ** 2 / float((total**4).sum()))
        if k < 2 or value in (0.0, 1.0):
            return cls(value, fewest, max(freedom - 1, 1.0), residuals)
        jackknife = (k - 1) / k * float(((residuals / (1 - total / n)) ** 2).sum())
        most = value * (1 - value) / fewest
        variance = (freedom * jackknife + CAUTION * most) / (freedom + CAUTION)
        effective = max(value * (1 - value) / variance, fewest)
        if not condition.graded:
            effective = min(effective, n)
        return cls(value, effective, max(freedom - 1, 1.0), residuals)

    def interval(self, level: float) -> tuple[float, float]:
        """Its two-sided interval, within [0, 1]."""
        tail = 0.5 + level / 2
        z = NormalDist().inv_cdf(tail) if math.isinf(self.freedom) else student_quantile(tail, self.freedom)
        return _interval(self.value, self.effective, z)


def wilson(rate: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion seen in n independent trials; n may be an effective size.

    >>> [round(end, 4) for end in wilson(0.1, 100)]
    [0.0552, 0.1744]
    """
    return _wilson(rate, n, NormalDist().inv_cdf(0.5 + level / 2))


def rate_interval(rate: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval with an exact end on the side of 0 or 1 where few of n are flagged or unflagged.

    >>> [round(end, 4) for end in rate_interval(0.02, 50)], [round(end, 4) for end in wilson(0.02, 50)]
    ([0.0005, 0.105], [0.0035, 0.105])
    """
    return _interval(rate, n, NormalDist().inv_cdf(0.5 + level / 2))


def _interval(p: float, n: float, z: float) -> tuple[float, float]:
    low, high = _wilson(p, n, z)
    if 0 < p * n < _FEW:
        low = min(low, _exact_lower_end(p * n, n, z))
    if 0 < (1 - p) * n < _FEW:
        high = max(high, 1 - _exact_lower_end((1 - p) * n, n, z))
    return low, high


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(max(p * (1 - p), 0.0) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if p == 0 else max(0.0, centre - half)), (1.0 if p == 1 else min(1.0, centre + half))


def _exact_lower_end(flagged: float, n: float, z: float) -> float:
    """Clopper and Pearson's lower end: the rate with which so many or more of n are flagged by a chance of 1 − Φ(z)."""
    from scipy.special import betainc, betaincinv, betaln  # scipy is needed only where few are flagged

    tail = math.erfc(z / math.sqrt(2)) / 2  # NormalDist loses the digits of a small chance
    others = max(n - flagged, 0.0) + 1
    end = float(betaincinv(flagged, others, tail))
    if abs(float(betainc(flagged, others, end)) - tail) <= 1e-6 * tail:
        return end
    # With few degrees of freedom the chance is so small that the inverse is not found. The first term of the series of
    # the incomplete beta function (DLMF 8.17.7) is exact there, and errs to the low side elsewhere.
    return (
        math.exp((math.log(tail) + math.log(flagged) + float(betaln(flagged, others))) / flagged)
        if tail
        else 0.0
    )


class Combination:
    """Linear combinations of the rates of several conditions on the same prompts.

    A search for the end of a ratio asks for hundreds of them, of two to four rates each: plain floats are ten times as
    fast as arrays there.

    Args:
        conditions: row i of each is the same prompt; every total above 0.
        level: of the two-sided intervals.
    """

    def __init__(self, conditions: Sequence[Clusters], level: float) -> None:
        self.rates = [ClusteredRate.of(condition) for condition in conditions]
        self.values = [rate.value for rate in self.rates]
        self._correlations = [
            (i, j, correlation(self.rates[i], self.rates[j]))
            for i, j in itertools.combinations(range(len(self.rates)), 2)
        ]
        self._ends = self._distances(level)

    def at(self, level: float) -> Combination:
        """The same rates with intervals of another level."""
        other = copy.copy(self)
        other._ends = self._distances(level)
        return other

    def estimate(self, coefficients: Sequence[float]) -> tuple[float, float, float]:
        """(value, low, high) of Σ coefficient·rate."""
        value, below, above = 0.0, [], []
        for c, rate, (down, up) in zip(coefficients, self.values, self._ends, strict=True):
            value += c * rate
            # signed, so that the sign of the correlation is right
            below.append(c * (down if c > 0 else up))
            above.append(c * (up if c > 0 else down))
        return value, value - self._length(below), value + self._length(above)

    def standard_error(self, coefficients: Sequence[float]) -> float:
        """Of Σ coefficient·rate, to first order, between prompts."""
        parts = sum(c * rate.residuals for c, rate in zip(coefficients, self.rates, strict=True))
        n = len(self.rates[0].residuals)
        return math.sqrt(n / (n - 1) * float((np.asarray(parts) ** 2).sum())) if n > 1 else math.inf

    def _distances(self, level: float) -> list[tuple[float, float]]:
        """From every rate to the lower and the upper end of its interval."""
        ends = [rate.interval(level) for rate in self.rates]
        return [(value - low, high - value) for value, (low, high) in zip(self.values, ends, strict=True)]

    def _length(self, parts: Sequence[float]) -> float:
        squares = sum(part * part for part in parts)
        products = sum(r * parts[i] * parts[j] for i, j, r in self._correlations)
        return math.sqrt(max(squares + 2 * products, 0.0))


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t; degrees of freedom need not be whole."""
    from scipy.special import stdtrit  # scipy is needed only where prompts have several completions

    return float(stdtrit(freedom, probability))


def correlation(a: ClusteredRate, b: ClusteredRate) -> float:
    """Of two rates over prompts, with Newcombe's continuity correction at the geometric mean of their n*."""
    x, y = a.residuals * len(a.residuals), b.residuals * len(b.residuals)
    spread = math.sqrt(float((x**2).mean()) * float((y**2).mean()))
    if spread == 0:
        return 0.0
    together = float((x * y).mean())
    if together > 0:
        together = max(together - 1 / (2 * math.sqrt(a.effective * b.effective)), 0.0)
    return min(max(together / spread, -1.0), 1.0)


def accepted_range(
    interval: Callable[[float], tuple[float, float]], start: float, least: float = -math.inf
) -> tuple[float | None, float | None]:
    """The ends of the values λ around `start` whose interval holds 0; None where no value up to 10⁴ is outside.

    Args:
        interval: λ → the ends of the interval of (numerator − λ·denominator).
        start: a λ whose interval holds 0.
        least: the lowest λ that makes sense, such as 0 for a ratio of two rates.
    """

    def holds(ratio: float) -> bool:
        low, high = interval(ratio)
        return low <= 0 <= high

    def end(direction: float) -> float | None:
        inside, step = start, 0.01
        while True:
            outside = max(inside + direction * step, least)
            if not holds(outside):
                break
            if outside == least:
                return least
            if abs(outside) >= _LARGEST_RATIO:
                return None
            inside, step = outside, 1.5 * step
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            if middle in (inside, outside):  # no number lies between them
                break
            inside, outside = (middle, outside) if holds(middle) else (inside, middle)
        return inside

    return end(-1.0), end(1.0)
