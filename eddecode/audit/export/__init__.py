"""A run's completions in the formats of other tools: JSON Lines, CSV, Parquet, Inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.audit.export.formats import (
        FORMATS,
        export_csv,
        export_jsonl,
        export_parquet,
        export_to,
        to_frame,
    )
    from eddecode.audit.export.labeling import completion_ids, label_sheet
    from eddecode.audit.export.rows import chosen_keys, export_rows, run_conditions

_HOMES = {
    "FORMATS": "eddecode.audit.export.formats",
    "chosen_keys": "eddecode.audit.export.rows",
    "completion_ids": "eddecode.audit.export.labeling",
    "export_csv": "eddecode.audit.export.formats",
    "export_jsonl": "eddecode.audit.export.formats",
    "export_parquet": "eddecode.audit.export.formats",
    "export_rows": "eddecode.audit.export.rows",
    "export_to": "eddecode.audit.export.formats",
    "label_sheet": "eddecode.audit.export.labeling",
    "run_conditions": "eddecode.audit.export.rows",
    "to_frame": "eddecode.audit.export.formats",
}

__all__ = [
    "FORMATS",
    "chosen_keys",
    "completion_ids",
    "export_csv",
    "export_jsonl",
    "export_parquet",
    "export_rows",
    "export_to",
    "label_sheet",
    "run_conditions",
    "to_frame",
]

__getattr__ = lazy_exports(__name__, _HOMES)
