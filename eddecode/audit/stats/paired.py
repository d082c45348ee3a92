"""Two conditions on the same prompts: how much they differ, and whether they differ.

A prompt that is answered harmfully under one condition is likely to be under the other too. So two overlapping
intervals do not mean that two conditions are alike: the difference on the same prompts is what is judged.

- Intervals of differences and ratios: closed form, see `eddecode.audit.stats.mover`.
- Tests: with one completion per prompt McNemar's (Psychometrika 12, 1947), exact. With several the sign-flip test of
  the per-prompt difference (Fisher, "The Design of Experiments", 1935, section 21): under the hypothesis the two
  conditions of a prompt could be swapped. Its distribution is computed exactly, by convolution (Pagano and
  Tritchler, JASA 78, 1983); with one completion per prompt it is McNemar's.
- Several α's are several tests: p-values are adjusted by Holm (Scandinavian Journal of Statistics 6, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eddecode.audit.stats.clusters import Clusters, Floats, shared
from eddecode.audit.stats.estimates import LEVEL, Estimate
from eddecode.audit.stats.mover import Combination, accepted_range
from eddecode.audit.stats.proportions import round_for_output

METHOD = "mover"
_WIDEST = 1_000_000  # largest support of an exact sign-flip distribution; beyond it signs are drawn
_FLIPS = 20_000
_SEED = 20240811

# Intervals ---------------------------------------------------------------------------------------------------------


def rate_estimate(condition: Clusters, level: float = LEVEL) -> Estimate:
    """The rate of one condition; like `clustered_rate`, for counts that need not be integers."""
    return _combined((condition,), (1.0,), level, (0.0, 1.0))


def difference(a: Clusters, b: Clusters, level: float = LEVEL) -> Estimate:
    """Rate of a − rate of b, on the prompts that both have."""
    return _combined((a, b), (1.0, -1.0), level, (-1.0, 1.0))


def difference_of_differences(
    a: Clusters, b: Clusters, c: Clusters, d: Clusters, level: float = LEVEL
) -> Estimate:
    """(a − b) − (c − d), on the prompts that all four have."""
    return _combined((a, b, c, d), (1.0, -1.0, -1.0, 1.0), level, (-2.0, 2.0))


def ratio(a: Clusters, b: Clusters, level: float = LEVEL) -> Estimate:
    """Rate of a / rate of b; with a rate of 0 for b it has no value, and only a lower end."""
    conditions = shared(a, b)
    prompts = len(conditions[0].total)
    if not prompts:
        return undefined(METHOD, level)
    combined = Combination(conditions, level)
    above, below = combined.values

    def interval(value: float) -> tuple[float, float]:
        return combined.estimate((1.0, -value))[1:]

    if below == 0:
        least = 0.0 if interval(0.0)[0] <= 0 else _first_accepted(interval)
        return estimate(None, least, None, None, prompts, METHOD, level)
    value = above / below
    low, high = accepted_range(interval, value, least=0.0)
    error = combined.standard_error((1.0, -value)) / below
    return estimate(value, low, high, error if above > 0 else None, prompts, METHOD, level)


def relative_decrease(a: Clusters, b: Clusters, level: float = LEVEL) -> Estimate:
    """1 − rate of a / rate of b; negative where a has the higher rate."""
    kept = ratio(a, b, level)
    value, low, high = (
        None if end is None else round_for_output(1 - end) for end in (kept.value, kept.high, kept.low)
    )
    return Estimate(value, low, high, kept.standard_error, kept.prompts, kept.method, kept.level)


def abbott_index(a: Clusters, b: Clusters, level: float = LEVEL) -> Estimate:
    """(rate of a − rate of b) / (1 − rate of b): Abbott's formula (J. Economic Entomology 18, 1925)."""
    return relative_decrease(a.complement, b.complement, level)


def remaining_fraction(a: Clusters, whole: Clusters, base: Clusters, level: float = LEVEL) -> Estimate:
    """(a − base) / (whole − base): the remaining part of an uplift; undefined unless that is clearly above 0."""
    conditions = shared(a, whole, base)
    prompts = len(conditions[0].total)
    if not prompts:
        return undefined(METHOD, level)
    combined = Combination(conditions, level)
    uplift, low, _ = combined.estimate((0.0, 1.0, -1.0))
    if low <= 0:
        return undefined(METHOD, level, prompts)
    value = combined.estimate((1.0, 0.0, -1.0))[0] / uplift

    def coefficients(left: float) -> tuple[float, float, float]:
        return 1.0, -left, left - 1.0

    ends = accepted_range(lambda left: combined.estimate(coefficients(left))[1:], value)
    error = combined.standard_error(coefficients(value)) / uplift
    return estimate(value, *ends, error, prompts, METHOD, level)


def _combined(
    conditions: Sequence[Clusters], coefficients: Sequence[float], level: float, bounds: tuple[float, float]
) -> Estimate:
    """A linear combination of rates, within the values that it can have."""
    conditions = shared(*conditions)
    prompts = len(conditions[0].total)
    if not prompts:
        return undefined(METHOD, level)
    combined = Combination(conditions, level)
    value, low, high = combined.estimate(coefficients)
    error = combined.standard_error(coefficients)
    return estimate(value, max(low, bounds[0]), min(high, bounds[1]), error, prompts, METHOD, level)


def _first_accepted(interval: Callable[[float], tuple[float, float]]) -> float:
    """The smallest ratio whose interval holds 0, where that of 0 does not."""
    low, high = 0.0, 0.01
    while interval(high)[0] > 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if interval(middle)[0] > 0 else (low, middle)
    return high


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


# Tests -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedTest:
    """Whether two conditions differ on the same prompts.

    Attributes:
        p: two-sided; 1 where no prompt differs.
        method: `mcnemar-exact`, `sign-flip-exact`, or `sign-flip` (drawn).
        prompts: compared; up, down: of them, with a higher and with a lower rate in the first condition.
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
    # Differences over one common denominator are whole numbers, so that ties of the statistic are exact.
    denominators = {int(t) for t in np.concatenate([a.total, b.total])} or {1}
    common = math.lcm(*denominators) if max(denominators) <= 64 else 0
    whole = bool(np.all(a.flagged % 1 == 0) and np.all(b.flagged % 1 == 0)) and 0 < common <= 10_000
    gaps = a.flagged / a.total - b.flagged / b.total
    counts = len(gaps), int((gaps > 1e-12).sum()), int((gaps < -1e-12).sum())
    if counts[1] + counts[2] == 0:
        return PairedTest(1.0, "mcnemar-exact" if denominators == {1} else "sign-flip-exact", *counts)
    if denominators == {1} and whole:
        from scipy import (
            stats as distributions,
        )  # slow to import, and only the tests of a finished run need it

        p = float(distributions.binomtest(counts[1], counts[1] + counts[2], 0.5).pvalue)
        return PairedTest(p, "mcnemar-exact", *counts)
    steps = np.rint(gaps * common).astype(np.int64)
    if whole and np.abs(steps).sum() <= _WIDEST:
        return PairedTest(_sign_flip(steps), "sign-flip-exact", *counts)
    return PairedTest(_drawn_sign_flip(gaps), "sign-flip", *counts)


def _sign_flip(steps: np.ndarray) -> float:
    """P(|sum of ± steps| ≥ |sum of steps|) with fair signs, exactly.

    Equal magnitudes make a binomial each; the sum's distribution is their convolution. Everything is divided by the
    steps' common divisor first, which keeps the arrays short.
    """
    from scipy import signal
    from scipy import stats as distributions

    seen = abs(int(steps.sum()))
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    divisor = math.gcd(*(int(size) for size in sizes))
    seen, sizes = seen // divisor, sizes // divisor
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        one = np.zeros(size * count + 1)  # how many of them are positive, `size` apart
        one[::size] = distributions.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.clip(signal.convolve(chances, one), 0.0, None)
    top = len(chances) - 1  # index i is the sum 2i − top
    sums = 2 * np.arange(len(chances)) - top
    return float(min(chances[np.abs(sums) >= seen].sum(), 1.0))


def _drawn_sign_flip(gaps: Floats) -> float:
    """The same by drawing signs; (hits + 1)/(draws + 1), Phipson and Smyth (SAGMB 9, 2010)."""
    rng, seen, hits = np.random.default_rng(_SEED), abs(float(gaps.sum())) - 1e-9, 0
    step = max(1, 2_000_000 // len(gaps))
    for start in range(0, _FLIPS, step):
        signs = rng.integers(0, 2, size=(min(step, _FLIPS - start), len(gaps)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ gaps) >= seen).sum())
    return (hits + 1) / (_FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the family-wise error rate stays below what they are held against.

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, running, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
