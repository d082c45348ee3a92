"""`audit.toml`: an audit as a file, read before a run, and written into the run's folder as it was run.

The keys are the fields of `AuditConfig`. An unknown key is an error that names the most similar one: a misspelt
threshold that is ignored gives a wrong finding. Paths are relative to the file, so that a folder with an audit in it
can be moved whole.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from eddecode.audit.config import AuditConfig
from eddecode.audit.data.prompts import PromptRecord, read_prompts
from eddecode.audit.data.transforms import Transform
from eddecode.audit.judges.spec import JudgeSpec
from eddecode.errors import ConfigError
from eddecode.utils.files import atomic_write, read_text
from eddecode.utils.validation import explain

FILE = "audit.toml"
_PROMPTS = ("prompts", "benign_prompts", "direction_harmful", "direction_harmless")  # written as NAME.jsonl
_SYNONYMS = {
    "judge": "judges",
    "transform": "transforms",
    "system": "systems",
    "template": "templates",
}  # [[judge]], [[transform]], [system], [template.NAME]
_THRESHOLDS = ("utility_loss", "min_tokens")  # the keys of [thresholds]
_PATHS = (
    *("base", "aligned", *_PROMPTS, "base_template", "aligned_template", "finetuned", "transforms"),
    *("canaries", "policy", "weak_base", "weak_aligned"),
)
_FILE_OPTIONS = (
    "words",
    "phrases",
    "model",
    "template",
    "context_template",
    "base",
    "argument",
)  # options of judges that are paths
_TEXT_OPTIONS = ("system", "message", "append")  # options of judges that may be @FILE
_GO_ON = (
    "free some space or make the folder writable, and run the same command again: nothing reported is lost"
)
_HEAD = "# This audit as it was run. Continue it with: eddecode audit --config audit.toml\n"


@cache
def _file_model() -> type[BaseModel]:
    """Any of the fields of `AuditConfig`, and no other; a file may leave out what the command line gives."""
    hints = get_type_hints(AuditConfig, include_extras=True)
    optional: dict[str, Any] = {field.name: (hints[field.name], None) for field in fields(AuditConfig)}
    return create_model("AuditFile", __config__=ConfigDict(extra="forbid"), **optional)


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The fields of `AuditConfig` that a file gives; paths in it hold from the current folder.

    Raises:
        ConfigError: the file cannot be read, is not TOML, has an unknown key (the message names the most similar one)
            or a value that its field does not take.
    """
    path = Path(path)
    try:
        table = tomllib.loads(read_text(path, "audit file", error=ConfigError))
    except ValueError as error:  # TOMLDecodeError, or a number of more digits than Python converts
        raise ConfigError(f"audit file {path} is not TOML: {error}") from error
    except RecursionError:
        raise ConfigError(
            f"audit file {path} is nested too deeply; expected the fields of an audit"
        ) from None
    values = {
        name: _located(path.parent, name, value) for name, value in _with_plain_names(path, table).items()
    }
    known = [field.name for field in fields(AuditConfig)]
    names = [*known, *_SYNONYMS, *(f"thresholds.{name}" for name in _THRESHOLDS)]
    try:
        checked = _file_model().model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, names=names, where=f"audit file {path}: ")) from None
    except ConfigError as error:
        raise ConfigError(f"audit file {path}: {error}") from None
    return {name: getattr(checked, name) for name in values}


def _with_plain_names(path: Path, table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with synonyms as fields, and with the keys of `[thresholds]` on its first level."""
    entries = [(key, value) for key, value in table.items() if key != "thresholds"]
    thresholds = table.get("thresholds", {})
    if not isinstance(thresholds, Mapping):
        raise ConfigError(f"audit file {path}: thresholds is {thresholds!r}; expected a table [thresholds]")
    entries += [
        (key if key in _THRESHOLDS else f"thresholds.{key}", value) for key, value in thresholds.items()
    ]
    values: dict[str, Any] = {}
    for key, value in entries:
        name = _SYNONYMS.get(key, key)
        if name in values:
            raise ConfigError(f"audit file {path} gives {name} twice; expected it once")
        values[name] = value
    return values


def _located(folder: Path, name: str, value: Any) -> Any:
    """A value whose paths, relative to `folder`, hold from the current folder."""
    if name == "out":
        return str(folder / str(value))
    if name in _PATHS and isinstance(value, str):
        return _path(folder, value)
    if name == "ensemble" and isinstance(value, list):
        return [_path(folder, str(entry)) for entry in value]
    if name == "templates" and isinstance(value, Mapping):
        return {key: _sides(partial(_path, folder), sides) for key, sides in value.items()}
    if name == "judges":
        listed = [value] if isinstance(value, str | Mapping) else value
        return [_judge(folder, entry) for entry in listed] if isinstance(listed, list) else value
    return value


def _sides(located: Callable[[str], Any], sides: Any) -> Any:
    """A pair of templates, each side located."""
    return {side: located(spec) for side, spec in sides.items()} if isinstance(sides, Mapping) else sides


def _path(folder: Path, value: str) -> str:
    """The path of what lies in the folder under this name; else the value itself, which may be a hub id."""
    found = folder / value
    return str(found) if value and "{prompt}" not in value and found.exists() else value


def _judge(folder: Path, entry: Any) -> Any:
    if not isinstance(entry, str | Mapping):
        return entry
    spec = JudgeSpec.parse(entry)
    options = {key: _option(folder, key, value) for key, value in spec.options.items()}
    argument = None if spec.argument is None else _path(folder, spec.argument)
    located = JudgeSpec(spec.kind, argument, options)
    if isinstance(entry, str):
        return str(located)
    table = {"kind": located.kind, "argument": located.argument, **located.options}
    return {key: value for key, value in table.items() if value is not None}


def _option(folder: Path, key: str, value: Any) -> Any:
    """An option of a judge whose path, relative to `folder`, holds from the current folder."""
    if key in _FILE_OPTIONS and isinstance(value, str):
        return _path(folder, value)
    if key in _TEXT_OPTIONS and isinstance(value, str) and value.startswith("@"):
        return f"@{_path(folder, value[1:])}"
    return value


# As run ----------------------------------------------------------------------------------------------------------


def write_as_run(
    config: AuditConfig, prompts: Sequence[PromptRecord], judges: Sequence[str] | None = None
) -> Path:
    """Write the configuration into the run's folder, such that an audit of that file continues the run.

    Args:
        config: of the run.
        prompts: written beside it where they were given from Python.
        judges: names of judges that were given as objects, which a file cannot hold; they are named in a comment. Of
            those in `config`, the objects are named so too.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder, table, comment = config.out_folder, {"out": "."}, ""
    if judges is None and not all(isinstance(judge, str | Mapping) for judge in config.judges):
        judges = [judge if isinstance(judge, str) else repr(judge) for judge in config.judges]
    resolved = {
        "prompts": [record for record in prompts if not record.benign],
        "benign_prompts": [record for record in prompts if record.benign],
    }
    for name in _PROMPTS:
        given = getattr(config, name)
        if given is None or isinstance(given, str | Path):
            continue
        table[name] = f"{name}.jsonl"
        records = resolved[name] if name in resolved else read_prompts(given)
        atomic_write(folder / table[name], "".join(map(_prompt_line, records)), hint=_GO_ON)
    if judges is not None:
        comment = f"# judges given from Python, which a file cannot hold: {', '.join(judges)!a}\n"
    for field in fields(config):
        value = getattr(config, field.name)
        is_default = value in (field.default, None) or value == {}
        wanted = field.name not in table and not (field.name == "judges" and judges is not None)
        if wanted and (field.name == "alphas" or not is_default):
            table[field.name] = _absolute(field.name, value)
    return atomic_write(folder / FILE, _HEAD + comment + tomli_w.dumps(table), hint=_GO_ON)


def _prompt_line(record: PromptRecord) -> str:
    """A prompt as a line of a file."""
    form = "prompt" if isinstance(record.prompt, str) else "messages"
    return json.dumps({**record.meta, form: record.prompt}, ensure_ascii=True) + "\n"


def copy_as_run(source: Path, folder: Path) -> None:
    """Copy the audit file of a shard, and its prompts if they lie beside it, into the folder of the merged run."""
    for name in (FILE, *(f"{name}.jsonl" for name in _PROMPTS)):
        if (source / name).is_file():
            atomic_write(folder / name, (source / name).read_bytes(), hint=_GO_ON)


def _absolute(name: str, value: Any) -> Any:
    """A value as TOML holds it, with local paths that hold from any folder."""
    if name == "transforms":
        return [transform.to_dict() if isinstance(transform, Transform) else transform for transform in value]
    if name == "ensemble":
        return [_absolute("base", entry) for entry in value]
    if name == "judges":
        return [_judge(Path.cwd(), entry) for entry in value]
    if name == "templates":
        return {key: _sides(partial(_absolute, "base_template"), sides) for key, sides in value.items()}
    if name in _PATHS and Path(value).exists():
        return os.path.abspath(value)
    return str(value) if isinstance(value, Path) else value
