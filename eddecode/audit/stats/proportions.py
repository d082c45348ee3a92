"""Rates with intervals that treat the samples of one prompt as a cluster.

Ten completions of one prompt are not ten prompts: they share what the prompt asks. So the unit is the prompt:

- One completion per prompt: the Wilson score interval (Wilson, JASA 22, 1927).
- Several: the cluster bootstrap (whole prompts are drawn with replacement; Davison and Hinkley, "Bootstrap Methods and
  their Application", 1997, section 3.8), percentile interval, widened where necessary to contain the Wilson interval at
  the effective sample size n/deff: the design effect is Kish's ("Survey Sampling", 1965), its use in an interval for
  proportions Korn and Graubard's (Survey Methodology 24, 1998).

Why widened: a percentile bootstrap only returns values observed in the data. With no flagged completion it is [0, 0],
and near 0 and 1 its coverage is far too low: 79% at a true rate of 2%, with 60 prompts of 4 correlated samples. The
Wilson interval with n/deff as its n covers well there. When all completions agree, deff cannot be estimated, and the
most cautious value is taken: all samples of a prompt are one observation. `eddecode.audit.stats.coverage` simulates it.

Figures that compare two conditions are in `paired`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from eddecode.audit.stats.estimates import LEVEL, Rate

RESAMPLES = 10_000
FEWEST = 2_000  # resamples with very many different prompts: a quantile is then known to 6% of the spread
_DRAWS = 10_000_000  # most (resamples × kinds of prompts) drawn for one interval
_CHUNK = 1_000_000  # of them at a time: bounds the memory
_SEED = 20240811  # fixed, so that the same data give the same table on every rerun

Floats = npt.NDArray[np.float64]


def wilson(rate: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion observed in n independent trials; n may be an effective size.

    >>> [round(end, 4) for end in wilson(0.1, 100)]
    [0.0552, 0.1744]
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(max(rate * (1 - rate), 0.0) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if rate == 0 else max(0.0, center - half)
    high = 1.0 if rate == 1 else min(1.0, center + half)
    return low, high


def effective_size(clusters: Iterable[tuple[float, float]]) -> float:
    """Number of independent completions with the same information: n / deff, from the number of clusters to n.

    The variance of the rate is that of the ratio estimator, between clusters (Kish 1965). Where all completions agree
    it cannot be estimated, and the number of clusters is returned.

    Args:
        clusters: (flagged, total) per prompt.
    """
    flagged, total = (np.asarray(column, dtype=np.float64) for column in zip(*clusters, strict=True))
    return effective(flagged, total)


def effective(flagged: Floats, total: Floats) -> float:
    """`effective_size` of two arrays (prompts,)."""
    n, k = float(total.sum()), len(total)
    rate = float(flagged.sum()) / n
    if rate in (0.0, 1.0) or k < 2:
        return float(k)
    between = k / (k - 1) * float(((flagged - rate * total) ** 2).sum()) / n**2
    if between == 0:
        return n
    return float(min(max(rate * (1 - rate) / between, k), n))


def resampled_sums(columns: Floats, resamples: int = RESAMPLES) -> Floats:
    """Sums of columns (prompts, C) when whole prompts are drawn with replacement, (resamples, C).

    Equal rows are counted, not listed: drawing k prompts is one multinomial draw over the distinct rows, so that ten
    thousand prompts cost no more than ten. Where almost all rows differ, fewer resamples are drawn, at least FEWEST.
    All columns share the draws, which makes a comparison paired.
    """
    kinds, counts = np.unique(columns, axis=0, return_counts=True)  # sorted, so that the draw has one order
    k = len(columns)
    resamples = max(min(resamples, _DRAWS // len(kinds)), min(resamples, FEWEST))
    rng = np.random.default_rng(_SEED)
    step = max(1, _CHUNK // len(kinds))
    sums = np.empty((resamples, columns.shape[1]))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        sums[start : start + size] = rng.multinomial(k, counts / k, size=size) @ kinds
    return sums


def cluster_bootstrap(
    clusters: Iterable[tuple[float, float]], level: float = LEVEL, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile interval of the pooled rate when whole clusters are drawn with replacement."""
    sums = resampled_sums(np.asarray(list(clusters), dtype=np.float64), resamples)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def clustered_rate(
    clusters: Iterable[tuple[int, int]], level: float = LEVEL, resamples: int = RESAMPLES
) -> Rate:
    """The rate and its interval, from (flagged, total) per prompt; prompts without completions are left out.

    Raises:
        ValueError: no completion at all.
    """
    pairs = [(int(flagged), int(total)) for flagged, total in clusters if total]
    if not pairs:
        raise ValueError("no completion to take a rate of")
    flagged, total = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    rate = flagged / total
    if total > len(pairs):
        low, high = wilson(rate, effective_size(pairs), level)
        drawn = cluster_bootstrap(pairs, level, resamples)
        low, high, method = min(low, drawn[0]), max(high, drawn[1]), "cluster-bootstrap"
    else:
        (low, high), method = wilson(rate, total, level), "wilson"
    return Rate(flagged, total, len(pairs), rate, low, high, level, method)


def round_for_output(value: float | None) -> float | None:
    """Nine decimals, because the last digits of a sum of floats depend on the number of threads; None if not finite."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), 9) + 0.0  # no −0.0
