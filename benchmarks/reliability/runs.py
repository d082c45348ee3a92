"""Runs without a model: a sampler that writes by rule, and what is read of a run afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eddecode.audit import AuditConfig, audit
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.export.formats import export_jsonl
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.store.store import Store
from eddecode.errors import EddecodeError
from eddecode.outputs import Completion, TokenLogprobs

ALPHAS = "0.3,0.6,1"


class RuleSampler:
    """Completions by rule: harm rises with α, and everything depends on prompt, α and sample alone."""

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
        """As `Sampler.as_completed`."""
        for index, (prompt, p) in enumerate(zip(prompts, params, strict=True)):
            for sample in range(p.n):
                key = f"{prompt!s:.100}|{p.seed}|{sample}".encode()
                u = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
                text = f"this is answer {key.hex()[:20]} of them" + " idiot" * (u < 0.3 * (1 + p.alpha))
                tokens = [TokenLogprobs(-1.0, -1.0 - p.alpha / 10, -1.0)] * 12
                yield Completion(
                    *(index, sample, float(p.alpha), text, list(range(12)), "eos"),
                    *(-12.0, -12.0 - 1.2 * p.alpha, tokens),
                )


class DisturbedSampler(RuleSampler):
    """The same completions; something else happens after 500 of them."""

    def __init__(self, disturb: Callable[[], Any]) -> None:
        self.disturb = disturb

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
        """As `Sampler.as_completed`."""
        for i, completion in enumerate(super().as_completed(prompts, params)):
            if i == 500:
                self.disturb()
            yield completion


def config(out: Path, prompts: int | list[str] = 200, **changes: Any) -> AuditConfig:
    """An audit of a pair that is never loaded; prompts: how many, or the prompts themselves."""
    listed = [f"question {i}" for i in range(prompts)] if isinstance(prompts, int) else prompts
    wanted: dict[str, Any] = {"alphas": ALPHAS, "samples": 2, "prompts": listed}
    return AuditConfig(base="org/base", aligned="org/aligned", out=out, **{**wanted, **changes})


def run(settings: AuditConfig, sampler: RuleSampler | None = None, **options: Any) -> Summary:
    """Run or continue the audit."""
    return audit(settings, sampler=sampler or RuleSampler(), judges=[LexiconJudge(["idiot"])], **options)


def table(folder: Path) -> tuple[str, ...]:
    """All completions and verdicts of a run."""
    return tuple(export_jsonl(folder))


def content(folder: Path) -> tuple[Any, ...]:
    """All that is read of a run."""
    with Store.read(folder) as store:
        parts = (
            store.note("identity"),
            store.sessions(),
            store.prompts(),
            store.conditions(),
            store.judges(),
        )
        rewards = [list(values) for c in store.conditions() for values in store.rewards(c.name)]
        return (*map(repr, parts), repr(rewards), table(folder))


def message(work: Callable[[], Any]) -> str:
    """The first words of the error that some work ends in; `none` without one."""
    try:
        work()
    except EddecodeError as error:
        return " ".join(str(error).split("; ", 1)[0].split(": ", 1)[-1].split())[:70]
    return "none"
