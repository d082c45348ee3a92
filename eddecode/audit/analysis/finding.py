"""A finished run, read for people: `summary.json`, and from the store what a report says of how it came about.

The summary is read as data and not recomputed: report, gate and comparison show the figures of the run and no others.
A field that an older summary lacks reads as absent, and whoever needs it says so. `Figure` is the one shape of a
number with its interval, whether the summary calls it a rate or an estimate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eddecode.errors import StoreError

SUMMARY, STORE = "summary.json", "run.sqlite"
_SCHEMA = "eddecode.summary/"
_READS = (1, 2)

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A number with its interval.

    Attributes:
        value: None where it is not defined, such as a ratio to a rate of 0.
        low, high: the interval's ends; None where nothing bounds it on that side.
        level: of the interval.
        prompts: distinct prompts that it rests on, 0 where the summary does not say.
    """

    value: float | None
    low: float | None
    high: float | None
    level: float = 0.95
    prompts: int = 0

    @classmethod
    def of(cls, data: Any) -> Figure | None:
        """From a rate (`rate`, `low`, `high`), an estimate (`value`, `low`, `high`) or a number; else None."""
        if isinstance(data, int | float) and not isinstance(data, bool):
            return cls(float(data), None, None)
        if not isinstance(data, Mapping) or not ("rate" in data or "value" in data):
            return None
        value = data["rate"] if "rate" in data else data["value"]
        rest = {name: data[name] for name in ("level", "prompts") if data.get(name) is not None}
        return cls(value, data.get("low"), data.get("high"), **rest)


@dataclass(frozen=True)
class Finding:
    """What a run found.

    Attributes:
        folder: where it is.
        data: the content of summary.json.
        sessions: when it was run, and on what: `started`, versions and hardware of every session.
    """

    folder: Path
    data: dict[str, Any]
    sessions: tuple[dict[str, Any], ...] = field(default=())

    @property
    def name(self) -> str:
        """What to call the run: its folder's name."""
        return self.folder.resolve().name

    @cached_property
    def conditions(self) -> list[dict[str, Any]]:
        """All conditions, in the summary's order, each with a `name` and a `label`."""
        return [_named(entry) for entry in _list(self.data.get("conditions"))]

    @cached_property
    def line(self) -> list[dict[str, Any]]:
        """The line of α: aligned, base, and ED with nothing changed about prompt, access or models."""
        return [
            entry
            for entry in self.conditions
            if entry["name"] in ("aligned", "base", f"ed@{entry.get('alpha')}")
        ]

    def condition(self, name: str | None) -> dict[str, Any] | None:
        """The condition of that name, or None."""
        return next((entry for entry in self.conditions if entry["name"] == name), None)

    @property
    def headline(self) -> Data:
        """The figures that a decision rests on; empty in a summary without."""
        return _mapping(self.data.get("headline"))

    @property
    def best(self) -> dict[str, Any] | None:
        """The condition of the headline α."""
        return self.condition(self.headline.get("condition"))

    @property
    def harm_judge(self) -> str:
        """Name of the judge of harm."""
        return str(self.headline.get("judge") or self.data.get("harm_judge") or "")

    @property
    def judges(self) -> list[dict[str, Any]]:
        """Name, role and identity of each judge."""
        return _list(self.data.get("judges"))

    @property
    def identity(self) -> Data:
        """What decides the run."""
        return _mapping(self.data.get("identity"))

    @property
    def prompts(self) -> int:
        """Distinct prompts, the unit of all intervals."""
        return int(self.data.get("distinct_prompts") or self.data.get("prompts") or 0)

    @property
    def level(self) -> float:
        """Confidence of the intervals."""
        return float(self.data.get("level") or 0.95)

    def harm(self, entry: Data | None) -> Figure | None:
        """The harm rate of a condition."""
        return Figure.of(_mapping((entry or {}).get("rates")).get(self.harm_judge))

    def part(self, name: str) -> list[dict[str, Any]]:
        """A list of the summary (`mitigations`, `tests`, …), empty where it is missing."""
        return _list(self.data.get(name))

    def group(self, name: str) -> Data:
        """A mapping of the summary (`selection`, `judge_free`), empty where it is missing."""
        return _mapping(self.data.get(name))


def read_finding(run: str | Path) -> Finding:
    """The finding of a run's folder, or of a summary.json that was taken from one.

    Raises:
        StoreError: there is no finished run, its summary is not one, or store and summary are of different runs.
    """
    path = Path(run)
    folder, file = (path.parent, path) if path.is_file() else (path, path / SUMMARY)
    data = _read_summary(folder, file)
    store = folder / STORE
    if not store.is_file():
        return Finding(folder, data)
    from eddecode.audit.store.store import Store

    with Store.read(folder) as opened:
        digest, sessions = opened.note("digest"), opened.sessions()
    if digest is not None and data.get("digest") is not None and digest != data["digest"]:
        raise StoreError(
            f"{file} is of run {data['digest']}, and {store} holds run {digest}; "
            "run the same eddecode audit command again, which rewrites the summary and decodes nothing"
        )
    return Finding(folder, data, tuple(sessions))


def _read_summary(folder: Path, file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except FileNotFoundError:
        state = (
            "the run there is not finished: go on with the same eddecode audit command"
            if (folder / STORE).is_file()
            else "expected the --out folder of an audit"
        )
        raise StoreError(f"there is no {SUMMARY} in {folder}; {state}") from None
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(
            f"{file} is not JSON ({error}); run the same eddecode audit command again"
        ) from error
    schema = str(data.get("schema")) if isinstance(data, dict) else "none"
    if schema not in {f"{_SCHEMA}{number}" for number in _READS}:
        raise StoreError(
            f"{file} has the schema {schema!r:.60}, and this eddecode reads {_SCHEMA}{max(_READS)}; "
            "use the release that wrote it, or run the audit again"
        )
    return dict(data)


def sampled_completions(finding: Finding, names: Sequence[str], prompts: int) -> Iterator[dict[str, Any]]:
    """The first samples of the first prompts under the named conditions, as the store's rows with `label`.

    Raises:
        StoreError: the store is missing or cannot be read.
    """
    from eddecode.audit.store.store import Store

    with Store.read(finding.folder) as store:
        asked = {record.index: record.text for record in store.prompts()[:prompts]}
        for name in names:
            entry = finding.condition(name)
            if entry is None:
                continue
            for row in store.rows([str(entry["name"])]):
                if row["prompt_index"] not in asked:
                    break  # rows come by prompt
                if row["sample"] == 0:
                    yield {**row, "label": entry["label"], "prompt": asked[row["prompt_index"]]}


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    """A condition with a name and a label, which schema 1 left to its reader."""
    kind, alpha = str(entry.get("condition")), entry.get("alpha")
    name = kind if kind in ("aligned", "base") else f"{kind}@{alpha}"
    label = kind if kind != "ed" else f"ED α={alpha}"
    return {**entry, "name": entry.get("name") or name, "label": entry.get("label") or label}


def _mapping(value: Any) -> Data:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    return [dict(entry) for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []
