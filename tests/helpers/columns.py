"""Tables of completions, as analyses read them, from a few columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eddecode.audit.analysis.completion_table import CompletionTable


def columns(
    rewards: Sequence[float] = (), rows: Sequence[int] | None = None, **figures: Sequence[float]
) -> CompletionTable:
    n = len(rewards) or len(next(iter(figures.values())))
    every: dict[str, Any] = {
        "implied_reward": rewards if len(rewards) else [0.0] * n,
        "empty": [0.0] * n,
        **figures,
    }
    where = np.array(rows if rows is not None else range(n))
    return CompletionTable(
        rows=where,
        keys=np.zeros((n, 2), dtype=np.int64),
        flags={},
        counted=np.ones(n, dtype=np.bool_),
        metrics={name: np.array(values, dtype=float) for name, values in every.items()},
        totals={"mean_tokens": 4.0, "dropped": 0},
        prompts=int(where.max()) + 1,
    )
