"""Which run is this? What decides an audit's completions and verdicts, as data that two runs can be compared by.

A rerun of the same command must go on where it stopped, and anything else must not: half a table from one word list and
half from another is no table. So content counts and names do not: a checkpoint folder, a prompt file, a template and a
word list may move, but not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eddecode.audit.conditions import parse_alphas
from eddecode.audit.config import AuditConfig
from eddecode.audit.data.prompts import PromptRecord, as_json
from eddecode.audit.data.transforms import read_transforms
from eddecode.audit.judges.base import Judge
from eddecode.models.fingerprint import checkpoint_identity, short_digest


def run_identity(
    config: AuditConfig, prompts: Sequence[PromptRecord], judges: Sequence[Judge]
) -> dict[str, Any]:
    """What decides the run's completions and verdicts; equal for equal runs, JSON-able, one level of readable keys."""
    sampling = {**config.sampling(), "stop": list(config.stop)}
    always = {
        "base": checkpoint_identity(config.base, config.base_revision),
        "aligned": checkpoint_identity(config.aligned, config.aligned_revision),
        "dtype": config.dtype,
        "base_template": template_identity(config.base_template),
        "aligned_template": template_identity(config.aligned_template),
        "prompts": f"{len(prompts)} prompts, digest {short_digest(as_json([p.prompt for p in prompts]).encode())}",
        "alphas": ",".join(condition.alpha for condition in config.conditions() if condition.kind == "ed"),
        "samples": config.samples,
        **sampling,
        "judges": [f"{judge.name}, digest {judge.identity}" for judge in judges],
    }
    return {**always, **{name: value for name, value in _beside(config).items() if value}}


def _beside(config: AuditConfig) -> dict[str, Any]:
    """What is asked for beside the pair's own conditions, and what is left out; empty values are not part of a run."""
    extras = config.extra_alphas
    return {
        "systems": [f"{name}, digest {short_digest(text.encode())}" for name, text in config.systems.items()],
        "transforms": [
            f"{transform.name}, digest {short_digest(as_json(transform.to_dict()).encode())}"
            for transform in read_transforms(config.transforms)
        ],
        "mitigations": list(config.mitigations),
        "extra_alphas": "" if extras is None else ",".join(sorted(parse_alphas(extras), key=float)),
        "finetuned": "" if config.finetuned is None else checkpoint_identity(config.finetuned, None),
        "ensemble": [checkpoint_identity(path, None) for path in config.ensemble],
        "no_text": not config.keep_text,
        "min_tokens": config.min_tokens,
    }


def identity_digest(identity: dict[str, Any]) -> str:
    """16 hex digits over a run's identity."""
    return short_digest(as_json(identity).encode())


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line per field that differs: `samples: 4 in the run, 8 now`."""
    fields = [*old, *(field for field in new if field not in old)]
    return [
        f"{field}: {_shown(*sides)} in the run, {_shown(*sides[::-1])} now"
        for field in fields
        if (sides := (old.get(field), new.get(field))) and sides[0] != sides[1]
    ]


def template_identity(spec: str | Path | None) -> str | None:
    """A template file by the digest of its text, anything else by its name."""
    if spec is not None and "{prompt}" not in str(spec) and Path(spec).is_file():
        return f"{Path(spec).name}, digest {short_digest(Path(spec).read_bytes())}"
    return None if spec is None else str(spec)


def _shown(value: Any, other: Any) -> str:
    """A value for people; of a list that differs from another in some entries, those entries."""
    if isinstance(value, list):
        own = [entry for entry in value if not isinstance(other, list) or entry not in other]
        return "; ".join(map(str, own or value)) or "none"
    return "nothing" if value is None else str(value)
