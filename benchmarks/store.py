"""What was measured, in a file: added to by later runs, read together with others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from eddecode.errors import ConfigError
from eddecode.utils.files import atomic_write

SAME = ("quick", "threads", "device")  # settings without which figures are not of the same kind
Key = tuple[str, str, str, str]


def key(record: report.Record) -> Key:
    """What a record is of: (size, dtype, kind of pair, task)."""
    return record["size"], record["dtype"], record["pair"], record["task"]


def write(path: Path, saved: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    atomic_write(path, json.dumps(saved, indent=1, ensure_ascii=False) + "\n")


def read(paths: Sequence[Path]) -> dict[str, Any]:
    """Files as one: of what is in several of them, the last counts.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    first: dict[str, Any] = {}
    results: dict[Key, report.Record] = {}
    for path in paths:
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            results.update((key(record), record) for record in saved["results"])
            first = first or saved
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} does not hold figures that --out has written ({type(error).__name__}: {error})"
            ) from error
    return first | {"results": list(results.values())}


def resumed(path: Path, settings: dict[str, Any]) -> dict[Key, report.Record]:
    """What a file holds already, if it was measured with the same settings; nothing if there is no file.

    Raises:
        ConfigError: it was measured with others, or before rounds could be added to.
    """
    if not path.exists():
        return {}
    saved = read([path])
    before = {name: saved["options"][name] for name in SAME}
    if before != {name: settings[name] for name in SAME}:
        raise ConfigError(f"{path} was measured with {before}; give the same options, or another --out")
    if any("bandwidths" not in record for record in saved["results"]):
        raise ConfigError(f"{path} is of an older kind, to which no rounds can be added; give another --out")
    return {key(record): record for record in saved["results"]}


def rounds_of(record: report.Record | None) -> int:
    """How many rounds a record has."""
    return 0 if record is None else len(record["bandwidths"])
