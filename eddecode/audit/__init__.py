"""The main job: what a pair of models gives away, measured.

An audit samples completions of the base model, of the aligned model, and of the two contrasted at each α, has them
judged, and ends in a rate with an interval per condition. It reads in the order of its modules: `plan`, `conditions`,
`mitigations` and `transforms` (what is asked), `prompts_file` (on which prompts), `config_file` (the same as a file),
`identity` (which run this is), `environment` (on what it works), `run` and `decode` (do it), `store`, `schema` and
`views` (keep it, and ask it), `judges`, `utility`, then the statistics, and what people look at: `summary`, `show`,
`curve`, `report`, `export`.
"""

from __future__ import annotations

from eddecode.audit.plan import AuditConfig, Condition
from eddecode.audit.run import audit, rejudge
from eddecode.audit.summary import Summary

__all__ = ["AuditConfig", "Condition", "Summary", "audit", "rejudge"]
