"""The fingerprint of a run: what decides its completions and verdicts, as data that two runs are compared by.

A rerun of the same command must continue the run, and a run of anything else must not: a table of which one half comes
from one word list and the other half from another is no result. Content counts and names do not: a checkpoint folder,
a prompt file, a template and a word list may move, but not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eddecode.audit.conditions import Condition, parse_alphas
from eddecode.audit.config import AuditConfig
from eddecode.audit.data.prompts import PromptRecord, as_json, read_prompts
from eddecode.audit.data.transforms import Transform
from eddecode.audit.judges.base import Judge
from eddecode.audit.policy import Policy
from eddecode.models.fingerprint import checkpoint_identity, short_digest


def run_fingerprint(
    config: AuditConfig,
    prompts: Sequence[PromptRecord],
    conditions: Sequence[Condition],
    transforms: Sequence[Transform],
    judges: Sequence[Judge],
) -> dict[str, Any]:
    """What decides the run's completions and verdicts: JSON data with readable keys, equal for equal runs."""
    sampling = {**config.sampling(), "stop": list(config.stop)}
    always = {
        "base": checkpoint_identity(config.base, config.base_revision),
        "aligned": checkpoint_identity(config.aligned, config.aligned_revision),
        "dtype": config.dtype,
        "base_template": template_fingerprint(config.base_template),
        "aligned_template": template_fingerprint(config.aligned_template),
        "prompts": _prompts_digest([p for p in prompts if not p.benign]),
        "alphas": ",".join(condition.alpha for condition in conditions if condition.kind == "ed"),
        "samples": config.samples,
        **sampling,
        "judges": [f"{judge.name}, digest {judge.identity}" for judge in judges],
    }
    return {
        **always,
        **{name: value for name, value in _optional(config, conditions, transforms).items() if value},
        **(
            {"benign_prompts": _prompts_digest(benign)}
            if (benign := [p for p in prompts if p.benign])
            else {}
        ),
    }


def _prompts_digest(prompts: Sequence[PromptRecord]) -> str:
    return f"{len(prompts)} prompts, digest {short_digest(as_json([p.prompt for p in prompts]).encode())}"


def _optional(
    config: AuditConfig, conditions: Sequence[Condition], transforms: Sequence[Transform]
) -> dict[str, Any]:
    """The settings that most runs do not have; those that are empty are left out of the fingerprint."""
    extras = config.extra_alphas
    return {
        "systems": [f"{name}, digest {short_digest(text.encode())}" for name, text in config.systems.items()],
        "transforms": [
            f"{transform.name}, digest {short_digest(as_json(transform.to_dict()).encode())}"
            for transform in transforms
        ],
        "templates": [_templates(name, sides) for name, sides in config.templates.items()],
        "mitigations": list(config.mitigations),
        "attacks": [attack.name for attack in config.parsed_attacks()],
        "direction_prompts": _direction_prompts(config),
        "weak_pair": [
            checkpoint_identity(path, None)
            for path in (config.weak_base, config.weak_aligned)
            if path is not None
        ],
        "temperatures": ",".join(dict.fromkeys(c.temperature for c in conditions if c.temperature)),
        "extra_alphas": "" if extras is None else ",".join(sorted(parse_alphas(extras), key=float)),
        "finetuned": "" if config.finetuned is None else checkpoint_identity(config.finetuned, None),
        "ensemble": [checkpoint_identity(path, None) for path in config.ensemble],
        **config.penalties(),
        "suppress_eos": config.suppress_eos,
        "ignore_eos": config.ignore_eos,
        "quantization": config.quantization or "",
        "long_context": config.long_context,
        "no_text": not config.keep_text,
        "template_variables": dict(config.template_variables),
        "fold_system": config.fold_system,
        "prefill": config.prefill,
        "special_tokens_in_prompts": not config.escape_specials,
        "mask_ids": config.mask_ids or "",
        "keep_thinking": config.keep_thinking,
        "min_tokens": config.min_tokens,
        "skip_too_long": config.skip_too_long,
        "policy": "" if config.policy is None else f"digest {Policy.read(config.policy).digest}",
    }


def _direction_prompts(config: AuditConfig) -> list[str]:
    """The prompts on which attacks are fitted, by their content."""
    given = {"harmful": config.direction_harmful, "harmless": config.direction_harmless}
    return [
        f"{name}: {_prompts_digest(read_prompts(source))}"
        for name, source in given.items()
        if source is not None
    ]


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """16 hex digits over a run's fingerprint."""
    return short_digest(as_json(dict(fingerprint)).encode())


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per field that differs between two fingerprints: `samples: 4 in the run, 8 now`."""
    fields = [*old, *(field for field in new if field not in old)]
    return [
        f"{field}: {_shown(*sides)} in the run, {_shown(*sides[::-1])} now"
        for field in fields
        if (sides := (old.get(field), new.get(field))) and sides[0] != sides[1]
    ]


def template_fingerprint(spec: str | Path | None) -> str | None:
    """A template file by the digest of its text, anything else by its name."""
    if spec is not None and "{prompt}" not in str(spec) and Path(spec).is_file():
        return f"{Path(spec).name}, digest {short_digest(Path(spec).read_bytes())}"
    return None if spec is None else str(spec)


def _templates(name: str, sides: Mapping[str, str | Path]) -> str:
    """`raw, digest 0f…`: a file counts by its content, anything else by its name."""
    known = {side: str(template_fingerprint(spec)).rpartition(", digest ")[2] for side, spec in sides.items()}
    return f"{name}, digest {short_digest(as_json(dict(sorted(known.items()))).encode())}"


def _shown(value: Any, other: Any) -> str:
    """A value for people; of a list that differs from another in some entries, those entries."""
    if isinstance(value, list):
        own = [entry for entry in value if not isinstance(other, list) or entry not in other]
        return "; ".join(map(str, own or value)) or "none"
    return "nothing" if value is None else str(value)
