"""The evidence that a verdict rests on, checked before any limit is.

A run without reversal and a run that measured nothing look alike in their figures. So the gate opens the run's store,
computes the figures anew, and asks whether the run could have shown a reversal at all: whether every completion is
there and judged, whether the judge sees harm, whether the models differ, whether the sweep over α covers what an
attacker would try. `gather` makes all checks; each has one sentence and a remedy.

- `recompute`: the store against summary.json, and what must be complete before there are figures
- `run_checks`: policy, models, settings and completions
- `judge_checks`: the judge of harm
- `alpha_checks`: the sweep over α
"""

from __future__ import annotations

from eddecode.audit.evidence.check import EvidenceCheck
from eddecode.audit.evidence.gather import Evidence, gather

__all__ = ["Evidence", "EvidenceCheck", "gather"]
