"""The figures that need no judge: the implied reward along α, and how far apart the two models are.

- The implied reward of a completion is log p_aligned − log p_base (nats): what alignment made more likely. Its mean
  falls along α; the size of the fall shows how far the contrast goes against the alignment, without any judge.
- KL(base ‖ aligned) is the mean of log p_base − log p_aligned over completions *of the base model*, KL(aligned ‖ base)
  the mean of the opposite over those of the aligned one. So the Monte-Carlo mean is unbiased, for completions up to the
  length limit of the run. This holds only for completions sampled from the whole distribution: with another
  temperature, a truncation, or completions left out, it estimates something else, and no figure is given.
- The depth profile is the implied reward by position: it shows an alignment that acts on the first few tokens only.

Means are ratio estimators over prompts (Cochran, "Sampling Techniques", 1977, chapter 6), their intervals use Student's
t with (prompts − 1) degrees of freedom. All are rounded to 0.001 nat, because the last digits of a log-probability
depend on the size of the batch.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from eddecode.audit.analysis.completion_table import CompletionTable
from eddecode.audit.analysis.summary_parts import (
    ImpliedReward,
    KLDivergence,
    KLPerToken,
    RewardPosition,
    RewardProfile,
)
from eddecode.audit.conditions import NO_PENALTIES, Condition
from eddecode.audit.stats.clusters import Floats
from eddecode.audit.stats.estimates import LEVEL, Estimate
from eddecode.audit.stats.paired import undefined
from eddecode.audit.store.store import Store

METHOD = "t"
_DIGITS = 3
_PART = 1024  # completions whose values per token are in memory at a time
_WHOLE_DISTRIBUTION = {
    "temperature": 1,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "plausibility": 0,
    **NO_PENALTIES,
}


def mean_estimate(sums: Floats, counts: Floats, level: float = LEVEL) -> Estimate:
    """Σ sums / Σ counts, with its interval over prompts.

    Args:
        sums, counts: per prompt, (prompts,); prompts with a count of 0 are left out.
        level: of the interval.
    """
    kept = counts > 0
    sums, counts = sums[kept], counts[kept]
    n = len(sums)
    if n == 0 or not np.isfinite(sums).all():
        return undefined(METHOD, level, n)
    value = float(sums.sum() / counts.sum())
    if n == 1:
        return Estimate(round(value, _DIGITS), None, None, None, 1, METHOD, level)
    from scipy import stats as distributions  # slow to import, and needed only when a run is summarized

    parts = (sums - value * counts) / counts.sum()
    error = math.sqrt(n / (n - 1) * float((parts**2).sum()))
    half = float(distributions.t.ppf(0.5 + level / 2, n - 1)) * error
    mean, low, high, error = (round(x, _DIGITS) + 0.0 for x in (value, value - half, value + half, error))
    return Estimate(mean, low, high, error, n, METHOD, level)


def reward_estimate(table: CompletionTable, sign: int = 1) -> Estimate:
    """Mean implied reward of a condition, nats per completion; undefined where one of them is not finite."""
    return mean_estimate(
        table.sums(sign * table.metrics["implied_reward"]), table.sums(np.ones(len(table.rows)))
    )


def implied_rewards(tables: Mapping[Condition, CompletionTable]) -> list[ImpliedReward]:
    """The summary's `judge_free.implied_reward`, one row per condition."""
    rows = []
    for condition, table in tables.items():
        mean, tokens = reward_estimate(table), table.totals["mean_tokens"]
        rows.append(
            ImpliedReward(
                condition=condition.name,
                alpha=condition.alpha,
                completion=mean,
                token=_per_token(mean, tokens),
            )
        )
    return rows


def kl_estimates(
    base: CompletionTable, aligned: CompletionTable, identity: Mapping[str, Any]
) -> KLDivergence:
    """The summary's `judge_free.kl`.

    Args:
        base, aligned: the completions of each model alone.
        identity: of the run, for its sampling parameters.
    """
    reason = _not_the_whole_distribution(identity)
    if reason:
        return KLDivergence(note=reason)
    base_aligned, aligned_base = reward_estimate(base, -1), reward_estimate(aligned)
    infinite = base_aligned.value is None or aligned_base.value is None
    return KLDivergence(
        base_aligned=base_aligned,
        aligned_base=aligned_base,
        per_token=KLPerToken(
            base_aligned=_per_token(base_aligned, base.totals["mean_tokens"]),
            aligned_base=_per_token(aligned_base, aligned.totals["mean_tokens"]),
        ),
        note="one model gives no probability to a completion of the other, so that the divergence is infinite"
        if infinite
        else "",
    )


def _per_token(mean: Estimate, tokens: float) -> float | None:
    return round(mean.value / tokens, _DIGITS) if mean.value is not None and tokens else None


def _not_the_whole_distribution(identity: Mapping[str, Any]) -> str:
    """Why the completions are no samples of the models' whole distributions; empty if they are."""
    changed = [
        f"{name} {identity[name]:g}"
        for name, default in _WHOLE_DISTRIBUTION.items()
        if identity.get(name, default) != default
    ]
    if changed:
        return f"completions were sampled with {', '.join(changed)}, not from the models' whole distributions"
    return ""


def depth_profile(store: Store, condition: Condition, table: CompletionTable) -> RewardProfile | None:
    """Implied reward per token by position, in bins of doubling width; None where the run keeps no values per token."""
    found = _by_depth(store.rewards(condition.key), table)
    if found is None:
        return None
    lengths, sums, counts = found
    longest = int(lengths.max())
    starts = _starts(longest)
    lasts = [start - 1 for start in starts[1:]] + [longest - 1]
    means = [mean_estimate(sums[:, i], counts[:, i]) for i in range(len(starts))]
    positions = tuple(
        RewardPosition(
            first=first,
            last=last,
            mean=mean.value,
            low=mean.low,
            high=mean.high,
            completions=int((lengths > first).sum()),
        )
        for first, last, mean in zip(starts, lasts, means, strict=True)
    )
    return RewardProfile(condition=condition.name, alpha=condition.alpha, positions=positions)


def _starts(longest: int) -> list[int]:
    """The first position of each bin: 0, 1, 2, 4, 8, …"""
    return [0] + [2**i for i in range(longest.bit_length()) if 2**i < longest]


def _by_depth(
    rewards: Iterator[array[float]], table: CompletionTable
) -> tuple[npt.NDArray[np.int64], Floats, Floats] | None:
    """The number of values of each completion, and per prompt and bin their sums and counts, (prompts, bins).

    None unless every completion of the table has values: only then are the rows of its prompts known.
    """
    lengths: list[int] = []
    sums, counts = np.zeros((2, table.prompts, 1))
    while part := list(islice(rewards, _PART)):
        own = np.array([len(values) for values in part])
        bins = len(_starts(max(int(own.max()), max(lengths, default=0))))
        sums, counts = (np.pad(each, ((0, 0), (0, bins - each.shape[1]))) for each in (sums, counts))
        rows = table.rows[len(lengths) : len(lengths) + len(part)]
        if len(rows) < len(part):
            return None
        values = np.frombuffer(b"".join(part), dtype=np.float32).astype(np.float64)
        position = np.arange(len(values)) - np.repeat(np.cumsum(own) - own, own)
        place = (
            np.repeat(rows, own) * bins + np.searchsorted(_starts(int(own.max())), position, side="right") - 1
        )
        size = table.prompts * bins
        sums += np.bincount(place, weights=values, minlength=size).reshape(sums.shape)
        counts += np.bincount(place, minlength=size).reshape(sums.shape)
        lengths += own.tolist()
    complete = bool(lengths) and len(lengths) == len(table.rows)
    return (np.array(lengths), sums, counts) if complete else None
