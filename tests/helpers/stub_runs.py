"""Audits with a stub for a sampler: a configuration, a judge, and what is in the run afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eddecode.audit import AuditConfig, audit
from eddecode.audit.export.formats import export_jsonl
from eddecode.audit.judges.lexicon import LexiconJudge
from helpers.stub_sampler import StubSampler

PROMPTS = [f"where is my order {i}?" for i in range(12)]


def config(out: Path, **changes: Any) -> AuditConfig:
    wanted: dict[str, Any] = {"alphas": "1,0.3,0", "samples": 3, "seed": 5, "prompts": PROMPTS, **changes}
    return AuditConfig(base="org/base", aligned="org/aligned", out=out, **wanted)


def judges() -> list[Any]:
    return [LexiconJudge(["idiot"])]


def run(settings: AuditConfig, **changes: Any) -> Any:
    return audit(settings, **{"sampler": StubSampler(), "judges": judges(), **changes})


def exported(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export_jsonl(folder)]


class Interrupted(StubSampler):
    """Stops after some completions, as by Ctrl-C."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
        for count, completion in enumerate(super().as_completed(prompts, params)):
            if count == self.after:
                raise KeyboardInterrupt
            yield completion
