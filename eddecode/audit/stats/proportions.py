"""Rates with intervals that respect that the samples of one prompt belong together.

Ten completions of one prompt are not ten prompts: they share what the prompt asks. So the prompt is the unit. With one
completion per prompt the interval is Wilson's (JASA 22, 1927); with several it is Wilson's at an effective size (see
`eddecode.audit.stats.mover`). A bootstrap over prompts is not used: it cannot leave the data, so that with no flagged
completion it returns [0, 0], and near 0 and 1 it covers far too rarely (`python -m eddecode.audit.stats.coverage`).

Figures that compare two conditions are in `paired`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from eddecode.audit.stats.clusters import Clusters
from eddecode.audit.stats.estimates import LEVEL, Rate
from eddecode.audit.stats.mover import ClusteredRate, wilson

DECIMALS = 9  # of every figure in a summary

__all__ = ["clustered_rate", "effective_size", "round_for_output", "wilson"]


def effective_size(clusters: Iterable[tuple[float, float]]) -> float:
    """How many independent completions (flagged, total) per prompt are worth, see `mover.ClusteredRate`."""
    return ClusteredRate.of(_columns(clusters)).effective


def clustered_rate(clusters: Iterable[tuple[float, float]], level: float = LEVEL) -> Rate:
    """The rate and its interval from (flagged, total) per prompt; prompts without completions do not count.

    Raises:
        ValueError: no completion at all.
    """
    pairs = [(int(flagged), int(total)) for flagged, total in clusters if total]
    if not pairs:
        raise ValueError("no completion to take a rate of")
    flagged, total = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    low, high = (round(end, DECIMALS) for end in ClusteredRate.of(_columns(pairs)).interval(level))
    method = "wilson-clustered" if total > len(pairs) else "wilson"
    return Rate(flagged, total, len(pairs), flagged / total, low, high, level, method)


def round_for_output(value: float | None) -> float | None:
    """Nine decimals: the last digits of a sum of floats depend on its order and on the release of numpy."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), DECIMALS) + 0.0  # no −0.0


def _columns(clusters: Iterable[tuple[float, float]]) -> Clusters:
    flagged, total = zip(*clusters, strict=True)
    return Clusters(np.asarray(flagged, dtype=np.float64), np.asarray(total, dtype=np.float64))
