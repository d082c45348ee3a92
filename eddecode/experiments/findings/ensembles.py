"""Finding 8: several aligned siblings of one base, averaged in the contrast."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from eddecode.experiments.findings.criteria import best, mean_difference, said
from eddecode.experiments.findings.finding import Finding, Outcome, Table
from eddecode.experiments.findings.harness import Target

if TYPE_CHECKING:
    from eddecode.experiments.findings.harness import Bench


def measure_ensemble(bench: Bench) -> Outcome:
    """Finding 8: siblings averaged in the contrast against each of them alone."""
    siblings = [replace(bench.aligned, seed=bench.seed + 100 * i) for i in range(bench.scale.siblings)]
    alone = [best(list(bench.sweep(Target(bench.base, (one,))).values())) for one in siblings]
    cells = bench.sweep(Target(bench.base, tuple(siblings)))
    together = best(list(cells.values()))
    mean = np.mean([one.both for one in alone], axis=0)
    difference, low, high = mean_difference(together.both, mean)
    by_alpha = {
        alpha: (
            cells[alpha].both,
            np.mean([bench.cell(Target(bench.base, (s,)), alpha).both for s in siblings], axis=0),
        )
        for alpha in bench.scale.alphas
    }
    rows = [("best", said(together.both), f"{100 * mean.mean():.1f}", said(together.valid))]
    rows += [
        (f"{a:g}", said(ours), f"{100 * theirs.mean():.1f}", said(cells[a].valid))
        for a, (ours, theirs) in by_alpha.items()
    ]
    text = (
        f"{len(siblings)} siblings together {said(together.both)}%, alone {100 * mean.mean():.1f}% on average: "
        f"{100 * difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    )
    heads = ("α", "together: rude and valid %", "alone, mean %", "together: valid %")
    return Outcome(
        low > 0,
        text,
        {
            "together": float(together.both.mean()),
            "alone": [float(one.both.mean()) for one in alone],
            "difference": [difference, low, high],
            "by_alpha": {f"{a:g}": [float(o.mean()), float(t.mean())] for a, (o, t) in by_alpha.items()},
        },
        [Table("Siblings averaged in the contrast", heads, rows)],
    )


ENSEMBLE = Finding(
    "ensembles",
    8,
    "Several aligned siblings in one contrast",
    "Averaging aligned siblings of one base reverses more than one of them, since their own noise averages out.",
    "Rude and valid at the ensemble's best α less the siblings' mean at theirs: the 95% interval over "
    "requests is above 0.",
    measure_ensemble,
    limits="Siblings differ by the seed of their data; the base and the method are the same.",
)
