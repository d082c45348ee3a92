"""The audit: measure how far a pair of models can be reversed.

An audit samples completions of the base model, of the aligned model and of their contrast at each α, judges them, and
gives a rate with an interval for each condition. `docs/architecture.md` lists its modules in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.audit.analysis.summary import Summary
    from eddecode.audit.conditions import Condition
    from eddecode.audit.config import AuditConfig
    from eddecode.audit.merging import merge
    from eddecode.audit.run import audit, rejudge

_HOMES = {
    "AuditConfig": "eddecode.audit.config",
    "Condition": "eddecode.audit.conditions",
    "Summary": "eddecode.audit.analysis.summary",
    "audit": "eddecode.audit.run",
    "merge": "eddecode.audit.merging",
    "rejudge": "eddecode.audit.run",
}

__all__ = ["AuditConfig", "Condition", "Summary", "audit", "merge", "rejudge"]

__getattr__ = lazy_exports(__name__, _HOMES)
