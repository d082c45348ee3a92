"""Judges: completions in, verdicts out.

A judge is named by a specification (`kind[:argument][,key=value…]`, or a table of an audit file; see `spec`). `options`
has the options of each kind, `registry` builds the judge, `base` has the protocol that all of them share.
"""

from __future__ import annotations

from eddecode.audit.judges.base import (
    Case,
    Judge,
    JudgeLike,
    Role,
    Verdict,
    fingerprint,
    release,
    verdicts_of,
)
from eddecode.audit.judges.registry import make_judge, make_judges

__all__ = [
    "Case",
    "Judge",
    "JudgeLike",
    "Role",
    "Verdict",
    "fingerprint",
    "make_judge",
    "make_judges",
    "release",
    "verdicts_of",
]
