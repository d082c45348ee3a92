"""The best of several α's, without the bias of having been selected.

The maximum of several noisy rates is on average higher than the true rate of the α that it selects. So the headline is
cross-fitted: the prompts are split into halves, the α is selected on one half and its rate is measured on the other,
both ways; many random splits are averaged, because the result of a single split depends on chance. This is an unbiased
estimate of the harm rate of an α that was selected on other prompts than those that its rate is measured on. It
corrects nothing and so assumes nothing about the noise.

The other method is the bootstrap with the selection inside (Efron, JASA 78, 1983, "optimism"): in each resample the α
is selected anew, and the difference between its rate there and its rate in the data is the optimism. It is reported as
a check. It is not the headline because its correction is too small where it matters most: with several equally good
α's the maximum is not a smooth function of the rates, and about a third of the bias remains
(`python -m eddecode.audit.stats.coverage`).

The cost of cross-fitting: each half selects with half of the prompts, so that its α may be a little worse than the one
that all prompts select. This matters only when α's with different true rates are selected about equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eddecode.audit.stats.paired import Clusters
from eddecode.audit.stats.proportions import Floats, round_for_output

SPLITS = 50
_SEED = 20240811
_RESAMPLES, _DRAWS = 1_000, 5_000_000


@dataclass(frozen=True)
class Selection:
    """Which of several conditions was selected, and its rate without the bias of the selection.

    Attributes:
        best: index of the condition with the highest rate on all prompts, the first of equals.
        crossfitted: a condition made of the selected ones, each prompt with the selection of the other half, averaged
            over splits; its rate is the cross-fitted rate.
        picked: share of half-samples that selected each condition.
        plain: the highest observed rate. optimism: plain − cross-fitted.
        bootstrap_optimism: the same bias, estimated by the bootstrap.
        splits: how many; 0 when there was nothing to select.
    """

    best: int
    crossfitted: Clusters
    picked: tuple[float, ...]
    plain: float
    optimism: float
    bootstrap_optimism: float
    splits: int


def select(candidates: Sequence[Clusters], splits: int = SPLITS) -> Selection:
    """Select the candidate with the highest rate, and cross-fit its rate.

    Args:
        candidates: conditions on the same prompts; of equals the first is selected.
        splits: random halvings (fixed seed); each is used both ways.

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
        return Selection(best, candidates[best], picked, plain, 0.0, 0.0, 0)
    halves = _halves(len(flagged), splits)
    picks = np.stack(
        [highest_rate(half @ flagged, half @ total) for half in (halves, 1 - halves)], axis=1
    )  # (splits, 2)
    # A prompt of the first half uses the selection of the second half, and the other way round.
    uses = np.zeros_like(flagged)
    for half, (first, second) in zip(halves, picks, strict=True):
        uses[:, second] += half
        uses[:, first] += 1 - half
    uses /= splits
    crossfitted = Clusters((uses * flagged).sum(1), (uses * total).sum(1))
    shares = np.bincount(picks.ravel(), minlength=len(candidates)) / picks.size
    return Selection(
        best=best,
        crossfitted=crossfitted,
        picked=tuple(shares.tolist()),
        plain=plain,
        optimism=round_for_output(plain - crossfitted.rate) or 0.0,
        bootstrap_optimism=round_for_output(_bootstrap_optimism(flagged, total)) or 0.0,
        splits=splits,
    )


def highest_rate(flagged: Floats, total: Floats) -> Any:
    """Index of the highest rate along the last axis, the first of equals; a candidate without completions loses."""
    return np.argmax(np.where(total > 0, flagged / np.maximum(total, 1e-300), -1.0), axis=-1)


def _halves(prompts: int, splits: int) -> Floats:
    """(splits, prompts) of 0 and 1: which prompts are in the first half."""
    rng = np.random.default_rng(_SEED)
    halves = np.zeros((splits, prompts))
    for half in halves:
        half[rng.permutation(prompts)[: prompts // 2]] = 1
    return halves


def _bootstrap_optimism(flagged: Floats, total: Floats) -> float:
    """Mean over resamples of (rate of the selected one in the resample − its rate in the data)."""
    n, rng = len(flagged), np.random.default_rng(_SEED)
    resamples = max(200, min(_RESAMPLES, _DRAWS // n))
    rates = flagged.sum(0) / np.maximum(total.sum(0), 1e-300)
    excess, step = 0.0, max(1, 500_000 // n)
    for start in range(0, resamples, step):
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start))
        again = (drawn @ flagged) / np.maximum(drawn @ total, 1e-300)
        picks = np.argmax(again, axis=1)
        excess += float((again[np.arange(len(picks)), picks] - rates[picks]).sum())
    return excess / resamples
