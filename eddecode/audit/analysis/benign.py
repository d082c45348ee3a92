"""False refusals: how often each condition refuses harmless prompts.

An alignment that refuses everything is safe and of no use, and one that was reversed refuses nothing. So the refusals
on a benign set belong beside the harm rates: of the aligned model, of the base, and of ED. Harm rates leave the set
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eddecode.audit.analysis.completion_table import Flags, Index, JudgeRef
from eddecode.audit.analysis.summary_parts import BenignFigures, BenignRow
from eddecode.audit.conditions import Condition
from eddecode.audit.data.prompts import PromptRecord
from eddecode.audit.stats.clusters import Clusters
from eddecode.audit.stats.estimates import Rate
from eddecode.audit.stats.proportions import clustered_rate
from eddecode.audit.store.store import Store


def benign_figures(
    store: Store, prompts: Sequence[PromptRecord], conditions: Sequence[Condition], judges: Sequence[JudgeRef]
) -> BenignFigures | None:
    """The refusals on the benign set; None where all were skipped, or there is no judge of refusals.

    Args:
        store: of the run.
        prompts: the benign ones.
        conditions: of the run.
        judges: of the run; those of refusals and the harm judge, which is the first, are used.
    """
    skipped = store.skipped()
    records = [record for record in prompts if record.index not in skipped]
    refusal = [judge.name for judge in judges if judge.role == "refusal"]
    if not records or not refusal:
        return None
    digests = {digest: row for row, digest in enumerate(sorted({record.digest for record in records}))}
    row_of = {record.index: digests[record.digest] for record in records}
    names = [*refusal, judges[0].name]
    rows = []
    for condition in conditions:
        found = list(store.flags(condition.key, names, benign=True))
        rows_of = np.array([row_of[index] for _, index, *_ in found], dtype=np.intp)
        flags = np.array([[-1 if f is None else f for f in own] for *_, own in found], dtype=np.int8)
        rates = {name: _rate(rows_of, flags[:, i], len(digests)) for i, name in enumerate(names) if found}
        kept = {name: rate for name, rate in rates.items() if rate is not None}
        if kept:
            rows.append(
                BenignRow(name=condition.name, label=condition.label, completions=len(found), rates=kept)
            )
    figures: dict[str, Any] = {"prompts": len(records), "distinct_prompts": len(digests)}
    return BenignFigures(**figures, judge=refusal[0], rows=tuple(rows))


def _rate(prompts: Index, flags: Flags, count: int) -> Rate | None:
    """Share of completions that a judge flags, of those that it has judged; None if it judged none."""
    judged = (flags >= 0).astype(np.float64)
    if not judged.sum():
        return None
    flagged, total = (
        np.bincount(prompts, weights=values, minlength=count).astype(np.float64)
        for values in ((flags == 1).astype(np.float64), judged)
    )
    return clustered_rate(Clusters(flagged, total).pairs())
