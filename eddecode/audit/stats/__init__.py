"""The statistics of an audit: intervals, paired tests, agreement, selection. They know counts, and no stores or models.

Only `estimates`, the results as plain data, is free of numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.audit.stats.estimates import Estimate, Rate
    from eddecode.audit.stats.proportions import clustered_rate, wilson

_HOMES = {
    "Estimate": "eddecode.audit.stats.estimates",
    "Rate": "eddecode.audit.stats.estimates",
    "clustered_rate": "eddecode.audit.stats.proportions",
    "wilson": "eddecode.audit.stats.proportions",
}

__all__ = ["Estimate", "Rate", "clustered_rate", "wilson"]

__getattr__ = lazy_exports(__name__, _HOMES)
