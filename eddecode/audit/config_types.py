"""The types of an audit's settings: what a value of each must be, and in which form it is kept.

pydantic reads them off the fields of `AuditConfig`. What settings must be together is checked there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator

from eddecode.audit.attacks import attack_names
from eddecode.audit.conditions import checked_label, parse_alphas
from eddecode.audit.data.transforms import Transform, read_transforms
from eddecode.audit.mitigations import parse_mitigations
from eddecode.errors import ConfigError
from eddecode.utils.validation import Integer, require_unique

PromptSource = str | Path | Sequence[str | Sequence[Mapping[str, str]] | Mapping[str, Any]]
TransformSource = str | Path | Sequence[Transform | Mapping[str, Any]]


def parse_temperatures(value: str | float | Sequence[str | float]) -> tuple[str, ...]:
    """Canonical texts of temperatures, as `parse_alphas` makes those of α's."""
    return parse_alphas(value, "temperature")


def _instance(*kinds: type, expected: str) -> PlainValidator:
    """Accept a value of these types and keep it as it is."""

    def check(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise ValueError(f"expected {expected}")
        return value

    return PlainValidator(check)


def _parsed(parse: Callable[[Any], Any], expected: str) -> PlainValidator:
    """Keep what `parse` returns; refuse a value that it cannot iterate over. `parse` itself raises ConfigError."""

    def check(value: Any) -> Any:
        try:
            return parse(value)
        except TypeError:
            raise ValueError(f"expected {expected}") from None

    return PlainValidator(check)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """One entry stands for a tuple of one."""
    return (value,) if isinstance(value, str | Path | Mapping) else tuple(value)


def _as_judges(value: Any) -> tuple[Any, ...]:
    """One judge, also a function, stands for a tuple of one."""
    return (value,) if callable(value) else _as_tuple(value)


def _check_number(value: Any) -> Any:
    """A finite number, kept as it is given: the fingerprint of a run holds 1 and 1.0 as they were written."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def _check_share(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError("expected a share from 0 to 1")
    return value


def _check_judges(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("expected at least one judge, such as lexicon")
    return value


def _check_location(value: str | Path) -> str | Path:
    """No blank text, which would be the current folder: most often a shell variable that is not set."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("expected a file, a folder or a name; give one, or leave it out")
    return value


def _check_ensemble(value: tuple[str | Path, ...]) -> tuple[str | Path, ...]:
    for model in value:
        if not isinstance(model, str | Path):
            raise ValueError("expected a list of checkpoints, each text or a path")
    require_unique(map(str, map(_check_location, value)), "model of the ensemble")
    return value


def _check_systems(value: Mapping[str, str]) -> Mapping[str, str]:
    for name, text in value.items():
        checked_label(name, "a system prompt")
        if not text.strip():
            raise ConfigError(f"system prompt {name} is {text!r}; expected text")
    return value


def _check_variables(value: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, given in value.items():
        try:
            json.dumps(given, allow_nan=False)
        except (TypeError, ValueError):
            raise ConfigError(
                f"template variable {name} is {given!r:.60}; expected text, a number, true or false, or a list or table"
            ) from None
    return value


def _check_templates(value: Mapping[str, Mapping[str, str | Path]]) -> Mapping[str, Mapping[str, str | Path]]:
    for name, sides in value.items():
        checked_label(name, "a pair of templates")
        if not sides or not set(sides) <= {"base", "aligned"} or not all(map(str, sides.values())):
            raise ConfigError(
                f"templates {name} is {dict(sides)!r:.80}; expected base, aligned or both, each a template: chat, a "
                "preset's name, or a file with {prompt}"
            )
    return value


def _check_whole_model(value: str | Path | None) -> str | Path | None:
    if value is not None and (Path(value) / "adapter_config.json").is_file():
        raise ConfigError(
            f"finetuned {value} is an adapter, and an audit cannot tell which model it belongs to; "
            "merge it into that model and give the merged checkpoint"
        )
    return value


AtLeast0 = Annotated[Integer, Field(ge=0, lt=2**63)]
AtLeast1 = Annotated[Integer, Field(ge=1, lt=2**63)]
Number = Annotated[float, PlainValidator(_check_number)]
Share = Annotated[Number, AfterValidator(_check_share)]
Location = Annotated[
    str | Path, _instance(str, Path, expected="text or a path"), AfterValidator(_check_location)
]
WholeModel = Annotated[Location | None, AfterValidator(_check_whole_model)]
Models = Annotated[
    Sequence[str | Path], _parsed(_as_tuple, "a list of checkpoints"), AfterValidator(_check_ensemble)
]
Prompts = Annotated[PromptSource, _instance(str, Path, Iterable, expected="a file, or a list of prompts")]
OptionalPrompts = Annotated[
    PromptSource | None,
    _instance(str, Path, Iterable, type(None), expected="a file, or a list of prompts"),
]
Alphas = Annotated[
    str | float | Sequence[str | float],
    _parsed(parse_alphas, "a number, a list of numbers, or text such as 0,0.3,1"),
]
Temperatures = Annotated[
    str | float | Sequence[str | float],
    _parsed(parse_temperatures, "a list of numbers, or text such as 0.7,1.3"),
]
Texts = Annotated[Sequence[str], _parsed(_as_tuple, "text or a list of texts")]
Variables = Annotated[Mapping[str, Any], AfterValidator(_check_variables)]
Judges = Annotated[Sequence[Any], _parsed(_as_judges, "a list of judges"), AfterValidator(_check_judges)]
Systems = Annotated[Mapping[str, str], AfterValidator(_check_systems)]
Templates = Annotated[Mapping[str, Mapping[str, str | Path]], AfterValidator(_check_templates)]
Transforms = Annotated[TransformSource, _parsed(read_transforms, "a file, or a list of tables")]
Mitigations = Annotated[
    str | Sequence[str], _parsed(parse_mitigations, "text or a list, such as topk5,round2")
]
Attacks = Annotated[
    str | Sequence[str], _parsed(attack_names, "text or a list, such as weights@-0.3,prefill:5")
]
