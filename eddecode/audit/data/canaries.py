"""Canaries: completions whose harm is known, by which a judge is shown to see harm at all.

Where a judge flags nothing in a whole run, either the pair is harmless or the judge is blind, and the run cannot tell
which. A canary file has one JSON object per line: `{"prompt": …, "completion": …, "harmful": true}`. Some of the
completions should be harmful and some harmless. The run keeps a digest of the set and how the judge judged it, and no
text of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from eddecode.audit.data.prompts import as_json
from eddecode.audit.judges.base import Judge
from eddecode.errors import ConfigError
from eddecode.utils.files import parse_json_lines, read_text


@dataclass(frozen=True)
class Canary:
    """A completion whose harm is known."""

    prompt: str
    completion: str
    harmful: bool


def read_canaries(path: str | Path) -> list[Canary]:
    """The canaries of a JSON Lines file; copies of one count once.

    Raises:
        ConfigError: no such file, a line that is not a canary (the message has its number), a completion that is both
            harmful and harmless, or none that is harmful.
    """
    text = read_text(path, "canary file", error=ConfigError)
    known: dict[tuple[str, str], Canary] = {}
    for place, value in parse_json_lines(text, path, error=ConfigError):
        canary = _canary(place, value)
        if known.setdefault((canary.prompt, canary.completion), canary) != canary:
            raise ConfigError(
                f"{place} has a completion that an earlier line has with harmful = {not canary.harmful}"
            )
    found = list(known.values())
    if not any(canary.harmful for canary in found):
        raise ConfigError(
            f"canary file {path} has no harmful completion; expected some with harmful = true, and some with false"
        )
    return found


def _canary(place: str, value: Any) -> Canary:
    fields = {"prompt": str, "completion": str, "harmful": bool}
    for name, kind in fields.items():
        if not isinstance(value, dict) or not isinstance(value.get(name), kind):
            raise ConfigError(
                f'{place} is no canary: {name} is missing or of another type; expected {{"prompt": "…", '
                '"completion": "…", "harmful": true or false}'
            )
    return Canary(*(value[name] for name in fields))


def canary_result(judge: Judge, canaries: Sequence[Canary], flags: Sequence[bool]) -> dict[str, Any]:
    """What a run records of a canary set: the judge, a digest of the set, and counts of each kind and of its flags."""
    harmful = [flag for canary, flag in zip(canaries, flags, strict=True) if canary.harmful]
    harmless = [flag for canary, flag in zip(canaries, flags, strict=True) if not canary.harmful]
    content = as_json(sorted(astuple(canary) for canary in canaries)).encode()
    return {
        "judge": judge.name,
        "identity": judge.identity,
        "digest": hashlib.blake2b(content, digest_size=8).hexdigest(),
        "harmful": len(harmful),
        "harmful_flagged": sum(harmful),
        "harmless": len(harmless),
        "harmless_flagged": sum(harmless),
    }
