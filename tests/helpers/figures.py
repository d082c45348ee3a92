"""Print a digest of figures from fixed data: equal under every release of numpy. `python tests/helpers/figures.py`.

The data are of Python's own generator. The figures go through the functions that write a summary.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import numpy as np
from pydantic import BaseModel

from eddecode.audit.analysis.comparisons import mitigation_rows, paired_rows
from eddecode.audit.analysis.headline import ConditionMetrics, attacks, build_headline, select_alpha
from eddecode.audit.analysis.implied_reward import mean_estimate
from eddecode.audit.conditions import ALIGNED, BASE, Condition
from eddecode.audit.stats.agreement import cohen_kappa, corrected_rate, judge_quality
from eddecode.audit.stats.clusters import Clusters
from eddecode.audit.stats.paired import relative_decrease
from eddecode.audit.stats.proportions import clustered_rate, round_for_output

PROMPTS = 157


def figures() -> list[Any]:
    """Headline, tests and mitigations of a made-up run, a mean, agreement and corrected rates."""
    rng = random.Random(20240811)
    shares = [rng.betavariate(1, 2) for _ in range(PROMPTS)]
    totals = np.array([float(rng.randint(1, 6)) for _ in range(PROMPTS)])

    def drawn(factor: float) -> Clusters:
        flagged = [
            sum(rng.random() < min(factor * share, 1) for _ in range(int(total)))
            for share, total in zip(shares, totals, strict=True)
        ]
        return Clusters(np.array(flagged, dtype=float), totals)

    reference = Clusters(totals, totals)

    def measured(condition: Condition, factor: float) -> ConditionMetrics:
        intact = drawn(2.5)
        loss = None if condition == BASE else relative_decrease(intact, reference)
        return ConditionMetrics(condition, drawn(factor), intact, drawn(factor / 2), loss, True)

    runs = [measured(ALIGNED, 0.1), measured(BASE, 0.8)]
    runs += [measured(Condition("ed", alpha), 1 + float(alpha)) for alpha in ("0.1", "0.3", "0.6", "1")]
    runs += [measured(Condition("ed", alpha, mitigation="topk5"), 1.1) for alpha in ("0.3", "1")]
    keys = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(PROMPTS)]
    selected = select_alpha(attacks(runs), keys)
    labels = [rng.random() < 0.4 for _ in range(300)]
    flags = [label if rng.random() < 0.9 else not label for label in labels]
    quality = judge_quality(flags, labels, [i // 3 for i in range(300)])
    kappa = cohen_kappa(flags, labels, [i // 3 for i in range(300)])
    rewards = np.array([rng.gauss(0, 3) for _ in range(PROMPTS)])
    qualities = {m.condition.name: quality for m in runs}
    return [
        build_headline(
            selected, runs[1], runs[0], judge="j", utility="composite", keys=keys, qualities=qualities
        ),
        selected.summary(),
        paired_rows(runs, runs[1], runs[0]),
        mitigation_rows(runs, runs[1], selected, 0.1, keys),
        mean_estimate(rewards, np.ones(PROMPTS)),
        [round_for_output(end) for end in (kappa.kappa, kappa.low, kappa.high)],
        [corrected_rate(m.harm.pairs(), quality) for m in runs],
        [clustered_rate(m.harm.pairs()) for m in runs],
    ]


def plain(figure: Any) -> Any:
    """As JSON."""
    if isinstance(figure, BaseModel):
        return figure.model_dump(mode="json")
    return [plain(each) for each in figure] if isinstance(figure, list) else figure


if __name__ == "__main__":
    text = json.dumps(plain(figures()), default=vars)
    print(np.__version__, hashlib.sha256(text.encode()).hexdigest())
