"""The store of a run: one SQLite file with its prompts, completions and verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.audit.store.records import JudgeRecord
    from eddecode.audit.store.store import Store

_HOMES = {
    "JudgeRecord": "eddecode.audit.store.records",
    "Store": "eddecode.audit.store.store",
}

__all__ = ["JudgeRecord", "Store"]

__getattr__ = lazy_exports(__name__, _HOMES)
