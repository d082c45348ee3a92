"""What a statistic is: a value with its interval over prompts. Plain data, without numpy, for all who only read it."""

from __future__ import annotations

from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Rate:
    """A proportion with its interval.

    Attributes:
        flagged, total: numbers of completions.
        prompts: number of distinct prompts, the clusters.
        rate: flagged / total.
        low, high: ends of the interval, in [0, 1].
        level: confidence of the interval, such as 0.95.
        method: `wilson`, or `wilson-clustered` where a prompt has several completions.
    """

    flagged: int
    total: int
    prompts: int
    rate: float
    low: float
    high: float
    level: float
    method: str

    @property
    def value(self) -> float:
        """The rate, under the name that an `Estimate` has for its value."""
        return self.rate


@dataclass(frozen=True)
class Estimate:
    """A figure that is not a plain rate (a difference, a ratio, a mean), with its interval over prompts.

    Attributes:
        value: None where it is not defined, such as a ratio to a rate of 0.
        low, high: ends of the interval; None: no bound on that side.
        standard_error: to first order, between prompts; None where it cannot be computed.
        prompts: number of distinct prompts.
        method: how the interval was computed.
        level: confidence of the interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    prompts: int = 0
    method: str = ""
    level: float = LEVEL


@dataclass(frozen=True)
class CorrectedRate:
    """A harm rate corrected for the errors of the judge.

    Attributes:
        rate: the estimate of Rogan and Gladen, clipped to [0, 1].
        low, high: interval of Lang and Reiczigel, within [0, 1].
        level: confidence of the interval.
        apparent: share of completions that the judge flagged.
        unclipped: the estimate before clipping. Far outside [0, 1] it means that the judge's errors are not those that
            were measured.
        note: what a reader must know; empty if nothing.
    """

    rate: float
    low: float
    high: float
    level: float
    apparent: float
    unclipped: float
    note: str = ""

    @property
    def value(self) -> float:
        """The rate, under the name that an `Estimate` has for its value."""
        return self.rate


AnyEstimate = Rate | Estimate | CorrectedRate  # all have `value`, `low`, `high` and `level`
