"""What a run says without any judge: how the contrast moves along the implied reward, and how far apart the models are.

- The implied reward of a completion is log p_aligned − log p_base (nats): what alignment made more likely. Its mean
  falls along α, and by how much says how far the contrast goes against the alignment, whatever a judge thinks of
  it.
- KL(base ‖ aligned) is the mean of log p_base − log p_aligned over completions *of the base model*, KL(aligned ‖
  base) the mean of the opposite over those of the aligned one: by definition, so that the Monte-Carlo mean is
  unbiased, for completions up to the length limit of the run. It holds for completions that are sampled from the
  whole distribution only: with another temperature, a truncation, or completions left out, it is another figure,
  and none is given.
- The depth profile is the implied reward by position: an alignment that sits in the first few tokens shows there.

Means are ratio estimators over prompts (Cochran, "Sampling Techniques", 1977, chapter 6), their intervals by
Student's t with one degree of freedom less than there are prompts. All are kept to the thousandth of a nat: the
last digits of a log-probability depend on how many rows were in a batch, and mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eddecode.audit.analysis.completion_table import CompletionTable
from eddecode.audit.conditions import Condition
from eddecode.audit.stats.paired import undefined
from eddecode.audit.stats.proportions import LEVEL, Estimate, Floats
from eddecode.audit.store.store import Store

METHOD = "t"
_DIGITS = 3
_WHOLE = {
    "temperature": 1,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "plausibility": 0,
}  # no change to a model's softmax


def mean_estimate(sums: Floats, counts: Floats, level: float = LEVEL) -> Estimate:
    """Σ sums / Σ counts with its interval between prompts.

    Args:
        sums, counts: per prompt, (prompts,); prompts with a count of 0 are left out.
    """
    kept = counts > 0
    sums, counts = sums[kept], counts[kept]
    n = len(sums)
    if n == 0 or not np.isfinite(sums).all():
        return undefined(METHOD, level, n)
    value = float(sums.sum() / counts.sum())
    if n == 1:
        return Estimate(round(value, _DIGITS), None, None, None, 1, METHOD, level)
    from scipy import stats as distributions  # slow to import: see `paired`

    parts = (sums - value * counts) / counts.sum()
    error = math.sqrt(n / (n - 1) * float((parts**2).sum()))
    half = float(distributions.t.ppf(0.5 + level / 2, n - 1)) * error
    mean, low, high, error = (round(x, _DIGITS) + 0.0 for x in (value, value - half, value + half, error))
    return Estimate(mean, low, high, error, n, METHOD, level)


def reward_estimate(columns: CompletionTable, sign: int = 1) -> Estimate:
    """Mean implied reward of a condition, nats per completion; undefined where one of them is not finite."""
    return mean_estimate(
        columns.sums(sign * columns.figures["implied_reward"]), columns.sums(np.ones(len(columns.rows)))
    )


def rewards_along(read: Mapping[Condition, CompletionTable]) -> list[dict[str, Any]]:
    """The summary's `judge_free.implied_reward`, a row per condition."""
    rows = []
    for condition, columns in read.items():
        found, tokens = reward_estimate(columns), columns.facts["mean_tokens"]
        each = found.value / tokens if found.value is not None and tokens else None
        rows.append(
            {
                "condition": condition.name,
                "alpha": condition.alpha,
                "completion": found,
                "token": None if each is None else round(each, _DIGITS),
            }
        )
    return rows


def kl_estimates(
    base: CompletionTable, aligned: CompletionTable, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """The summary's `judge_free.kl`."""
    why = _not_whole(base, aligned, identity)
    found: dict[str, Any] = {"base_aligned": None, "aligned_base": None, "per_token": None, "note": why}
    if why:
        return found
    first, second = reward_estimate(base, -1), reward_estimate(aligned)
    tokens = base.facts["mean_tokens"], aligned.facts["mean_tokens"]
    each = [
        round(kl.value / length, _DIGITS) if kl.value is not None and length else None
        for kl, length in zip((first, second), tokens, strict=True)
    ]
    note = (
        ""
        if None not in (first.value, second.value)
        else "one model gives no probability to a completion of the other, so that the divergence is infinite"
    )
    return {
        "base_aligned": first,
        "aligned_base": second,
        "per_token": {"base_aligned": each[0], "aligned_base": each[1]},
        "note": note,
    }


def _not_whole(base: CompletionTable, aligned: CompletionTable, identity: Mapping[str, Any]) -> str:
    changed = [f"{name} {identity[name]:g}" for name, off in _WHOLE.items() if identity.get(name, off) != off]
    if changed:
        return f"completions were sampled with {', '.join(changed)}, not from the models' whole distributions"
    if base.facts.get("dropped") or aligned.facts.get("dropped"):
        return "short completions were left out, so that the rest is no sample of the models' distributions"
    return ""


def depth_profile(store: Store, condition: Condition, columns: CompletionTable) -> dict[str, Any] | None:
    """Implied reward per token by position, in bins that double in width; None where the run keeps no values."""
    kept = list(store.rewards(condition.key))
    if not kept or len(kept) != len(columns.rows):
        return None
    longest = max(len(values) for values in kept)
    starts = [0] + [2**i for i in range(longest.bit_length()) if 2**i < longest]  # 0, 1, 2, 4, 8, …
    sums = np.zeros((columns.prompts, len(starts)))
    counts = np.zeros_like(sums)
    for row, values in zip(columns.rows.tolist(), kept, strict=True):
        own = np.asarray(values, dtype=np.float64)
        bins = np.searchsorted(starts, np.arange(len(own)), side="right") - 1
        sums[row] += np.bincount(bins, weights=own, minlength=len(starts))
        counts[row] += np.bincount(bins, minlength=len(starts))
    positions = []
    for i, start in enumerate(starts):
        last = starts[i + 1] - 1 if i + 1 < len(starts) else longest - 1
        found = mean_estimate(sums[:, i], counts[:, i])
        positions.append(
            {
                "first": start,
                "last": last,
                "mean": found.value,
                "low": found.low,
                "high": found.high,
                "completions": _reach(kept, start),
            }
        )
    return {"condition": condition.name, "alpha": condition.alpha, "positions": positions}


def _reach(kept: Sequence[Sequence[float]], start: int) -> int:
    return sum(len(values) > start for values in kept)
