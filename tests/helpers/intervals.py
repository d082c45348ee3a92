"""The intervals of `eddecode.audit.stats.mover`, recomputed from their definitions in plain Python, for tests.

Slow and short: the jackknife leaves out each prompt and takes the rate again, Wilson's interval is the roots of its
quadratic, and a double loop does the sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from scipy import optimize, special
from scipy import stats as distributions

Condition = Sequence[tuple[float, float]]  # (flagged, total) per prompt


@dataclass(frozen=True)
class NaiveRate:
    value: float
    effective: float
    low: float
    high: float
    residuals: tuple[float, ...]


def naive_rate(condition: Condition, level: float) -> NaiveRate:
    return _naive_rate(tuple(condition), level)


@cache
def _naive_rate(condition: Condition, level: float) -> NaiveRate:
    flagged, total = [f for f, _ in condition], [t for _, t in condition]
    k, n = len(total), sum(total)
    p = sum(flagged) / n
    floor = n**2 / sum(t**2 for t in total)
    residuals = tuple((f - p * t) / n for f, t in condition)
    tail = 0.5 + level / 2
    if set(total) == {1.0}:
        return NaiveRate(p, floor, *_ends(p, floor, distributions.norm.ppf(tail)), residuals)
    freedom = min(floor, sum(t**2 for t in total) ** 2 / sum(t**4 for t in total))
    z = distributions.t.ppf(tail, max(freedom - 1, 1.0))
    if k == 1 or p in (0.0, 1.0):
        return NaiveRate(p, floor, *_ends(p, floor, z), residuals)
    left_out = [(sum(flagged) - f) / (n - t) for f, t in condition]
    jackknife = (k - 1) / k * sum((rate - p) ** 2 for rate in left_out)
    variance = (freedom * jackknife + 0.5 * p * (1 - p) / floor) / (freedom + 0.5)
    effective = min(max(p * (1 - p) / variance, floor), n)
    return NaiveRate(p, effective, *_ends(p, effective, z), residuals)


def _ends(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's; on the side of 0 or 1, with under 5 of n flagged or not, Clopper and Pearson's if that is wider."""
    low, high = _roots(p, n, z)
    tail, x, y = distributions.norm.sf(z), p * n, (1 - p) * n
    if 0 < x < 5:
        low = min(low, _beta_root(tail, x, y + 1))
    if 0 < y < 5:
        high = max(high, 1 - _beta_root(tail, y, x + 1))
    return low, high


def _beta_root(chance: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = chance, by bisection of its logarithm: scipy's inverse fails for tiny chances."""
    low, high = -745.0, 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if special.betainc(a, b, math.exp(middle)) < chance:
            low = middle
        else:
            high = middle
    return math.exp(high)


def _roots(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson: the π with (p − π)² = z²·π(1 − π)/n."""
    a, b, c = 1 + z**2 / n, -(2 * p + z**2 / n), p**2
    root = math.sqrt(max(b**2 - 4 * a * c, 0.0))
    return (0.0 if p == 0 else (-b - root) / (2 * a)), (1.0 if p == 1 else (-b + root) / (2 * a))


def naive_correlation(a: NaiveRate, b: NaiveRate) -> float:
    k = len(a.residuals)
    spread = math.sqrt(sum(x**2 for x in a.residuals) * sum(y**2 for y in b.residuals)) * k
    if spread == 0:
        return 0.0
    together = k * sum(x * y for x, y in zip(a.residuals, b.residuals, strict=True))
    if together > 0:
        together = max(together - 1 / (2 * math.sqrt(a.effective * b.effective)), 0.0)
    return min(max(together / spread, -1.0), 1.0)


def naive_combination(
    conditions: Sequence[Condition], coefficients: Sequence[float], level: float
) -> tuple[float, float, float]:
    """MOVER: (value, low, high) of Σ coefficient·rate."""
    rates = [naive_rate(condition, level) for condition in conditions]
    value = sum(c * r.value for c, r in zip(coefficients, rates, strict=True))
    ends = []
    for down in (True, False):
        parts = [
            c * (r.value - r.low) if (c > 0) == down else c * (r.high - r.value)
            for c, r in zip(coefficients, rates, strict=True)
        ]
        square = 0.0
        for i, x in enumerate(parts):
            for j, y in enumerate(parts):
                square += x * y * (1.0 if i == j else naive_correlation(rates[i], rates[j]))
        ends.append(math.sqrt(max(square, 0.0)))
    return value, value - ends[0], value + ends[1]


def naive_ratio(above: Condition, below: Condition, level: float) -> tuple[float, float]:
    """Fieller: the λ at which an end of the interval of (above − λ·below) crosses 0. Both rates are above 0."""

    def end(index: int) -> float:
        def crossing(ratio: float) -> float:
            return naive_combination((above, below), (1.0, -ratio), level)[index]

        value = naive_rate(above, level).value / naive_rate(below, level).value
        outside = (0.0, value) if index == 1 else (value, 1e4)
        return float(optimize.brentq(crossing, *outside, xtol=1e-9, rtol=1e-9))

    return end(1), end(2)
