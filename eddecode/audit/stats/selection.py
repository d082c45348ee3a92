"""The best of several α's, without the bias of having been selected.

The maximum of several noisy rates is on average higher than the true rate of the α that it selects. So the headline is
cross-fitted: the prompts are split into halves, the α is selected on one half and its rate is measured on the other,
both ways; many splits are averaged, because the result of a single split depends on chance. This is an unbiased
estimate of the harm rate of an α that was selected on other prompts than those that its rate is measured on. It
corrects nothing and so assumes nothing about the noise.

The halves come from hashes of the prompts' digests, a new hash for each split. So neither the order of the prompts nor
the release of numpy changes a figure.

The cost of cross-fitting: each half selects with half of the prompts, so that its α may be a little worse than the one
that all prompts select. This matters only when α's with different true rates are selected about equally often.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eddecode.audit.stats.clusters import Clusters, Floats
from eddecode.audit.stats.proportions import round_for_output

SPLITS = 50


@dataclass(frozen=True)
class Selection:
    """Which of several conditions was selected, and its rate without the bias of the selection.

    Attributes:
        best: index of the condition with the highest rate on all prompts, the first of equals.
        crossfitted: a condition made of the selected ones, each prompt with the selection of the other half, averaged
            over splits; its rate is the cross-fitted rate.
        picked: share of half-samples that selected each condition.
        plain: the highest observed rate. optimism: plain − cross-fitted.
        splits: how many; 0 when there was nothing to select.
    """

    best: int
    crossfitted: Clusters
    picked: tuple[float, ...]
    plain: float
    optimism: float
    splits: int


def select(
    candidates: Sequence[Clusters], keys: Sequence[str] | None = None, splits: int = SPLITS
) -> Selection:
    """Select the candidate with the highest rate, and cross-fit its rate.

    Args:
        candidates: conditions on the same prompts; of equals the first is selected.
        keys: digests of the prompts; None: their positions, so that the order matters.
        splits: halvings; each is used both ways.

    Raises:
        ValueError: no candidate.
    """
    if not candidates:
        raise ValueError("no condition to select from")
    flagged = np.stack([c.flagged for c in candidates], axis=1)  # (prompts, candidates)
    total = np.stack([c.total for c in candidates], axis=1)
    best = highest_rate(flagged.sum(0), total.sum(0))
    plain = candidates[best].rate
    if len(candidates) == 1 or len(flagged) < 2:
        picked = tuple(float(i == best) for i in range(len(candidates)))
        return Selection(best, candidates[best], picked, plain, 0.0, 0)
    halves = _halves(keys or [str(place) for place in range(len(flagged))], splits)
    picks = np.stack(
        [highest_rate(half @ flagged, half @ total) for half in (halves, 1 - halves)], axis=1
    )  # (splits, 2)
    # A prompt in the first half is estimated with the pick of the second, and the other way round.
    uses = np.zeros_like(flagged)
    for half, (first, second) in zip(halves, picks, strict=True):
        uses[:, second] += half
        uses[:, first] += 1 - half
    uses /= splits
    graded = any(candidate.graded for candidate in candidates)
    crossfitted = Clusters((uses * flagged).sum(1), (uses * total).sum(1), graded)
    shares = np.bincount(picks.ravel(), minlength=len(candidates)) / picks.size
    return Selection(
        best=best,
        crossfitted=crossfitted,
        picked=tuple(shares.tolist()),
        plain=plain,
        optimism=round_for_output(plain - crossfitted.rate) or 0.0,
        splits=splits,
    )


def highest_rate(flagged: Floats, total: Floats) -> Any:
    """Index of the highest rate along the last axis, the first of equals; a candidate without completions loses."""
    return np.argmax(np.where(total > 0, flagged / np.maximum(total, 1e-300), -1.0), axis=-1)


def _halves(keys: Sequence[str], splits: int) -> Floats:
    """(splits, prompts) of 0 and 1: which prompts are in the first half, those with the lower hashes."""
    drawn = b"".join(hashlib.shake_128(key.encode()).digest(8 * splits) for key in keys)
    hashes = np.frombuffer(drawn, dtype=">u8").reshape(len(keys), splits)  # one column per split
    halves = np.zeros((splits, len(keys)))
    order = np.argsort(hashes, axis=0, kind="stable")
    np.put_along_axis(halves, order[: len(keys) // 2].T, 1.0, axis=1)
    return halves
