"""How well a score ranks flagged completions above the others: the area under the ROC curve, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import rankdata

from eddecode.experiments.findings.criteria import LEVEL, Flags, Floats


@dataclass(frozen=True)
class Auc:
    """An area under the ROC curve.

    Attributes:
        value: the chance that a flagged completion has a higher score than another one; equal scores count half.
        error: its standard error by DeLong et al. (Biometrics 44, 1988).
        flagged, others: numbers of completions.
    """

    value: float
    error: float
    flagged: int
    others: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval, on the scale of the logit, so that it stays within (0, 1)."""
        if not 0 < self.value < 1:
            return (self.value, self.value)
        center, spread = math.log(self.value / (1 - self.value)), self.value * (1 - self.value)
        step = NormalDist().inv_cdf(1 - LEVEL / 2) * self.error / spread
        low, high = (1 / (1 + math.exp(-x)) for x in (center - step, center + step))
        return low, high

    def differs_from(self, other: Auc) -> bool:
        """Whether the areas of two independent samples differ, by a z-test at 0.05."""
        error = math.hypot(self.error, other.error)
        if error == 0:
            return self.value != other.value
        return 2 * (1 - NormalDist().cdf(abs(self.value - other.value) / error)) < LEVEL


def auc(scores: Floats, flagged: Flags) -> Auc:
    """The area under the ROC curve.

    Args:
        scores: (n,), higher for what should be flagged.
        flagged: (n,) bool, with at least two of each kind.

    >>> auc(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False])).value
    0.75
    """
    above, below = scores[flagged], scores[~flagged]
    m, n = len(above), len(below)
    together = rankdata(np.concatenate([above, below]))
    # Placement: the share of the other kind that a score is above, half of the equal ones included.
    of_above = (together[:m] - rankdata(above)) / n
    of_below = 1 - (together[m:] - rankdata(below)) / m
    variance = of_above.var(ddof=1) / m + of_below.var(ddof=1) / n
    return Auc(float(of_above.mean()), math.sqrt(variance), m, n)
