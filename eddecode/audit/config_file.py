"""`audit.toml`: an audit as a file, read before a run and written into its folder as it was run.

The keys are the fields of `AuditConfig`. A key that is none of them is an error that names the nearest one, because a
misspelt threshold that is silently ignored is a wrong finding. Paths are relative to the file, so that a folder with an
audit in it can be moved whole.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from eddecode.audit.config import AuditConfig
from eddecode.audit.data.prompts import PromptRecord
from eddecode.audit.data.transforms import Transform, read_transforms
from eddecode.audit.judges.spec import JudgeSpec
from eddecode.errors import ConfigError
from eddecode.utils.files import atomic_write

FILE, PROMPTS = "audit.toml", "prompts.jsonl"
_TABLES = {"judge": "judges", "transform": "transforms"}  # [[judge]] is another way of writing judges = [{…}]
_SYNONYMS = {**_TABLES, "system": "systems"}
_PATHS = ("base", "aligned", "prompts", "base_template", "aligned_template", "finetuned", "transforms")
_THRESHOLDS = ("utility_loss", "min_tokens")
_NUMBERS = (
    *("samples", "temperature", "top_k", "top_p", "min_p", "plausibility", "max_new_tokens", "seed"),
    *_THRESHOLDS,
)
_KINDS = {
    **dict.fromkeys(("prompts", "stop", "mitigations", "ensemble", "transforms"), "text or a list"),
    **dict.fromkeys(("alphas", "extra_alphas"), "numbers"),
    "judges": "a list of judges",
    "systems": "a table of texts",
}
_GO_ON = (
    "free some space or make the folder writable, and run the same command again: nothing reported is lost"
)
_FILE_OPTIONS = ("words", "phrases", "model", "template", "base", "argument")


def field_names() -> tuple[str, ...]:
    """The keys that an audit file may have, beside `[[judge]]`, `[[transform]]`, `[system]` and `[thresholds]`."""
    return tuple(field.name for field in fields(AuditConfig))


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The fields of `AuditConfig` that a file gives, with paths that hold from here.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has an unknown key; the message names the nearest.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"audit file {path} cannot be read ({error.strerror}); expected a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"audit file {path} is not TOML: {error}") from error
    values: dict[str, Any] = {}
    for key, value in _flattened(path, table):
        name = _SYNONYMS.get(key, key)
        _known(path, key, (*field_names(), *_SYNONYMS), name in field_names())
        if name in values:
            raise ConfigError(f"audit file {path} gives {name} twice; expected it once")
        _typed(path, name, value)
        values[name] = _located(path.parent, name, value)
    return values


def _flattened(path: Path, table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Key and value pairs, with `[thresholds]` opened."""
    found = []
    for key, value in table.items():
        if key != "thresholds":
            found.append((key, value))
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"audit file {path}: thresholds is {value!r}; expected a table [thresholds]")
        for inner in value:
            _known(
                path,
                f"thresholds.{inner}",
                [f"thresholds.{name}" for name in _THRESHOLDS],
                inner in _THRESHOLDS,
            )
        found += list(value.items())
    return found


def _known(path: Path, key: str, names: Sequence[str], known: bool) -> None:
    if not known:
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
        raise ConfigError(f"audit file {path} has the key {key}, which is none; {hint}")


def _typed(path: Path, name: str, value: Any) -> None:
    """Refuse a value of another kind than its key's; what a value may be is the configuration's matter."""
    expected = _KINDS.get(name)
    if expected is None:
        expected = "a number" if name in _NUMBERS else "true or false" if name == "keep_text" else "text"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "text": isinstance(value, str),
        "a number": number,
        "true or false": isinstance(value, bool),
        "text or a list": isinstance(value, str | list),
        "numbers": number or isinstance(value, str | list),
        "a list of judges": isinstance(value, str | list | Mapping),
        "a table of texts": isinstance(value, Mapping),
    }
    if not fits[expected]:
        raise ConfigError(f"audit file {path}: {name} is {value!r:.60}; expected {expected}")


def _located(folder: Path, name: str, value: Any) -> Any:
    """A value whose paths are taken from the file's folder, where something lies there."""
    if name == "out":
        return str(folder / str(value))
    if name in _PATHS and isinstance(value, str):
        return _path(folder, value)
    if name == "ensemble" and isinstance(value, list):
        return [_path(folder, str(entry)) for entry in value]
    if name == "judges":
        listed = [value] if isinstance(value, str | Mapping) else value
        return [_judge(folder, entry) for entry in listed] if isinstance(listed, list) else value
    return value


def _path(folder: Path, value: str) -> str:
    found = folder / value
    return str(found) if value and "{prompt}" not in value and found.exists() else value


def _judge(folder: Path, entry: Any) -> Any:
    if not isinstance(entry, str | Mapping):
        return entry
    spec = JudgeSpec.parse(entry)
    options = {
        key: _path(folder, value) if key in _FILE_OPTIONS and isinstance(value, str) else value
        for key, value in spec.options.items()
    }
    argument = None if spec.argument is None else _path(folder, spec.argument)
    located = JudgeSpec(spec.kind, argument, options)
    if isinstance(entry, str):
        return str(located)
    table = {"kind": located.kind, "argument": located.argument, **located.options}
    return {key: value for key, value in table.items() if value is not None}


# As run ----------------------------------------------------------------------------------------------------------


def write_as_run(
    config: AuditConfig, prompts: Sequence[PromptRecord], judges: Sequence[str] | None = None
) -> Path:
    """Write the configuration into the run's folder: running that file again goes on with the run.

    Prompts that were given from Python are written beside it. `judges` names those that were given as objects, which no
    file can hold.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder = config.out_folder
    lines = ["# This audit as it was run: eddecode audit --config audit.toml goes on with it.", 'out = "."']
    if not isinstance(config.prompts, str | Path):
        records = "".join(
            json.dumps({**p.meta, _kind(p): p.prompt}, ensure_ascii=True) + "\n" for p in prompts
        )
        atomic_write(folder / PROMPTS, records, hint=_GO_ON)
        lines.append(f"prompts = {_toml(PROMPTS)}")
    if judges is not None:
        lines.append(f"# judges given from Python, which a file cannot hold: {', '.join(judges)!a}")
    tables: list[str] = []
    for field in fields(AuditConfig):
        value = getattr(config, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name == "out" or (field.name == "prompts" and f"prompts = {_toml(PROMPTS)}" in lines):
            continue
        if field.name == "judges" and judges is not None:
            continue
        if value is None or (value == default and field.name != "alphas"):
            continue
        if field.name == "systems":
            tables += ["", "[systems]", *(f"{_key(name)} = {_toml(text)}" for name, text in value.items())]
        else:
            lines.append(f"{field.name} = {_toml(_absolute(field.name, value))}")
    return atomic_write(folder / FILE, "\n".join([*lines, *tables]) + "\n", hint=_GO_ON)


def _kind(record: PromptRecord) -> str:
    return "prompt" if isinstance(record.prompt, str) else "messages"


def _absolute(name: str, value: Any) -> Any:
    """A value whose local paths hold from any folder."""
    if name == "transforms":
        return [
            transform.to_dict() if isinstance(transform, Transform) else transform
            for transform in read_transforms(value)
        ]
    if name == "ensemble":
        return [_absolute("base", entry) for entry in value]
    if name == "judges":
        return [_judge(Path.cwd(), entry) for entry in value]
    if name in _PATHS and Path(value).exists():
        return os.path.abspath(value)
    return value


def _toml(value: Any) -> str:
    """A value as TOML; JSON's escapes of text are TOML's, but for those of characters beyond 16 bits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    text = json.dumps(str(value), ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)
