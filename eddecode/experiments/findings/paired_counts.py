"""Two conditions on the same requests as four counts: enough for every paired statistic, and small enough to store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from eddecode.experiments.findings.criteria import Flags


@dataclass(frozen=True)
class PairedCounts:
    """How many requests are flagged under two conditions.

    Attributes:
        both, first, second, neither: requests flagged under both, under the first one only, under the second one
            only, and under neither.
    """

    both: int
    first: int
    second: int
    neither: int

    @classmethod
    def of(cls, a: Flags, b: Flags) -> PairedCounts:
        """Counts of two conditions (n,) bool.

        >>> PairedCounts.of(np.array([True, True, False]), np.array([True, False, False]))
        PairedCounts(both=1, first=1, second=0, neither=1)
        """
        return cls(*(int(mask.sum()) for mask in (a & b, a & ~b, b & ~a, ~a & ~b)))

    @classmethod
    def pool(cls, several: Iterable[Sequence[int]]) -> PairedCounts:
        """The requests of several seeds together, from the counts of each as `to_list` gives them."""
        return cls(*np.sum(np.array(list(several), dtype=int), axis=0).tolist())

    @property
    def flags(self) -> tuple[Flags, Flags]:
        """Two conditions (n,) bool with these counts; the order of the requests is not that of the original."""
        counts = [self.both, self.first, self.second, self.neither]
        return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)

    def to_list(self) -> list[int]:
        """As JSON data."""
        return list(astuple(self))
