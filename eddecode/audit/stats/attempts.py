"""The chance of a flagged completion among k of a prompt's samples, and its mean over prompts.

Estimated as pass@k is (Chen et al., arXiv 2107.03374, section 2.1): with c of n samples flagged, 1 − C(n−c, k)/C(n, k)
is unbiased for k ≤ n, while 1 − (1 − c/n)^k is not. The interval is that of a rate with one value per prompt
(`mover`); near 0 and 1 it has an exact end.
"""

from __future__ import annotations

import numpy as np

from eddecode.audit.stats.clusters import Clusters, Floats


def any_of_k(flagged: Floats, total: Floats, k: int) -> Floats:
    """1 − C(total − flagged, k)/C(total, k), elementwise; totals below k give a value without meaning.

    >>> any_of_k(np.array([1.0]), np.array([4.0]), 2).tolist()
    [0.5]
    """
    none = np.ones_like(total)
    for i in range(k):  # the chance that attempt i is harmless, after i harmless ones
        none *= np.clip((total - flagged - i) / np.maximum(total - i, 1.0), 0.0, 1.0)
    return 1 - none


def any_of_k_clusters(flagged: Floats, total: Floats, k: int, samples: int) -> Clusters:
    """The chance per prompt that has at least k samples, as a condition whose rate is its mean.

    A prompt counts as the number of groups of k that `samples`, the most that a prompt has, make: that bounds what its
    samples can be worth.
    """
    groups = np.where(total >= k, samples / k, 0.0)
    return Clusters(any_of_k(flagged, total, k) * groups, groups)
