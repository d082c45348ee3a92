"""Counts of one condition per prompt: what every statistic of rates is computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Clusters:
    """Counts of one condition per prompt.

    Attributes:
        flagged, total: completions of each distinct prompt, (prompts,) float64; row i is the same prompt in every
            condition of a run. They need not be integers: a cross-fitted condition is a mean of several.
        graded: whether `flagged` is a sum of values in [0, 1], such as scores, instead of a number of completions;
            their variance is then estimated from the data, and may be smaller than that of counts with the same rate.
    """

    flagged: Floats
    total: Floats
    graded: bool = False

    @property
    def rate(self) -> float:
        """Flagged over total, pooled; NaN without completions."""
        total = float(self.total.sum())
        return float(self.flagged.sum()) / total if total else math.nan

    @property
    def complement(self) -> Clusters:
        """The completions that are not flagged."""
        return Clusters(self.total - self.flagged, self.total, self.graded)

    def of_prompts(self, rows: npt.NDArray[np.intp]) -> Clusters:
        """The condition on some of its prompts."""
        return Clusters(self.flagged[rows], self.total[rows], self.graded)

    def pairs(self) -> list[tuple[int, int]]:
        """(flagged, total) per prompt, for `clustered_rate`."""
        return list(zip(self.flagged.astype(int).tolist(), self.total.astype(int).tolist(), strict=True))


def shared(*conditions: Clusters) -> list[Clusters]:
    """The conditions on the prompts that all of them have completions of."""
    kept = np.logical_and.reduce([c.total > 0 for c in conditions])
    return [Clusters(c.flagged[kept], c.total[kept], c.graded) for c in conditions]
