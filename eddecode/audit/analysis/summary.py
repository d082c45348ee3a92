"""The result of a run: what `audit` returns, what `summary.json` holds, what tables, report and gate read.

It depends on the content of the store and on nothing else (no clock, no order of arrival), so that a run that was
interrupted and resumed ends with the same summary as one that was not. `summarize` computes it from a store;
`Summary.write` and `Summary.read` write and read the file. Its schema is documented in docs/statistics.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from eddecode.audit.analysis.benchmark_parts import BenchmarkFigure
from eddecode.audit.analysis.release_parts import ReleaseFigures
from eddecode.audit.analysis.summary_parts import (
    BenignFigures,
    CanarySummary,
    ConditionSummary,
    Headline,
    JudgeAgreement,
    JudgeFree,
    JudgeInfo,
    MitigationSummary,
    PairedComparison,
    Part,
    SelectionSummary,
    TransferSummary,
)
from eddecode.audit.conditions import alpha_text, canonical_name
from eddecode.audit.export.formats import to_frame
from eddecode.audit.stats.estimates import LEVEL, Rate
from eddecode.audit.store.schema import FILE as STORE_FILE
from eddecode.audit.store.schema import stored_digest
from eddecode.errors import StoreError
from eddecode.utils.files import atomic_write, read_bytes
from eddecode.utils.validation import explain

FILE = "summary.json"
SCHEMA = "eddecode.summary/3"
_OLDER = ("eddecode.summary/1", "eddecode.summary/2")
_AGAIN = "run the same eddecode audit command again, which rewrites the summary and decodes nothing"


class Summary(Part):
    """The result of one run.

    Attributes:
        digest: of the identity.
        identity: what decides the run's completions and verdicts.
        content: digest of the store's content that the figures are from; see `GateQueries.content_digest`.
        prompts, distinct_prompts: number of each; the distinct ones are the clusters of the intervals.
        level: confidence of the intervals.
        judges: the first judges harm.
        harm_judge: name of the judge that harm rates are by.
        canaries: how it judged a canary set; None without one.
        conditions: one entry per condition: aligned, base, ED with α from low to high, then the others.
        headline: the figures that a decision rests on.
        selection: how the headline α was selected.
        tests: paired comparisons of the conditions with base and aligned.
        mitigations, transfer, agreement: empty where the run has none.
        judge_free: the figures that need no judge.
        release: the figures that a system card needs beside the headline; empty in files of older releases.
        benchmarks: what the pair can do besides; empty where none was run (`eddecode utility`).
        benign: refusals of harmless prompts; None where the run has no benign set.
        notes: what a reader of the figures has to know.
        folder: of the run; not in the file.
    """

    digest: str = ""
    identity: dict[str, Any] = Field(default_factory=dict)
    content: str = ""
    prompts: int = 0
    distinct_prompts: int = 0
    level: float = LEVEL
    judges: tuple[JudgeInfo, ...] = ()
    harm_judge: str = ""
    canaries: CanarySummary | None = None
    conditions: tuple[ConditionSummary, ...] = ()
    headline: Headline = Headline()
    selection: SelectionSummary = SelectionSummary()
    tests: tuple[PairedComparison, ...] = ()
    mitigations: tuple[MitigationSummary, ...] = ()
    transfer: tuple[TransferSummary, ...] = ()
    agreement: tuple[JudgeAgreement, ...] = ()
    judge_free: JudgeFree = JudgeFree()
    release: ReleaseFigures = ReleaseFigures()
    benchmarks: tuple[BenchmarkFigure, ...] = ()
    benign: BenignFigures | None = None
    notes: tuple[str, ...] = ()
    folder: Path = Field(default=Path(), exclude=True)

    @classmethod
    def read(cls, run: str | Path) -> Summary:
        """The summary in a run's folder, or in a summary.json that was copied from one.

        Raises:
            StoreError: the run is not finished, the file is not a summary, or the store beside it is of another run.
        """
        path = Path(run)
        folder, file = (path.parent, path) if path.is_file() else (path, path / FILE)
        if not file.exists():
            state = (
                "the run there is not finished: go on with the same eddecode audit command"
                if (folder / STORE_FILE).is_file()
                else "expected the --out folder of an audit"
            )
            raise StoreError(f"there is no {FILE} in {folder}; {state}")
        text = read_bytes(file, "summary", error=StoreError)
        summary = cls.from_json(text, folder=folder, source=file)
        stored = stored_digest(folder)
        if stored is not None and summary.digest and stored != summary.digest:
            raise StoreError(
                f"{file} is of run {summary.digest}, and {folder / STORE_FILE} holds run {stored}; {_AGAIN}"
            )
        return summary

    @classmethod
    def from_json(cls, text: str | bytes, *, folder: Path = Path(), source: str | Path = FILE) -> Summary:
        """The summary in the text of a summary.json.

        Args:
            text: the content of the file.
            folder: of the run.
            source: name of the file, for messages.

        Raises:
            StoreError: not JSON, another schema, or a field that is not what the schema says; the message names it.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{source} is not JSON ({error}); {_AGAIN}") from error
        schema = str(data.get("schema")) if isinstance(data, dict) else "none"
        if schema not in (SCHEMA, *_OLDER):
            raise StoreError(
                f"{source} has the schema {schema!r:.60}, and this eddecode reads {SCHEMA}; "
                "use the release that wrote it, or run the audit again"
            )
        try:
            return cls.model_validate({**_upgraded(data, schema), "folder": folder})
        except ValidationError as error:
            first = explain(error, names=list(cls.model_fields)).splitlines()[0]
            raise StoreError(f"{source} is damaged: {first}; {_AGAIN}") from None

    def to_dict(self) -> dict[str, Any]:
        """The content of summary.json."""
        return {"schema": SCHEMA, **self.model_dump(mode="json")}

    def write(self) -> Path:
        """Write summary.json into the run's folder, whole or not at all.

        Raises:
            StoreError: the folder cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=True, allow_nan=False) + "\n"
        return atomic_write(self.folder / FILE, text, hint="the completions are safe")

    def to_frame(self, names: Sequence[str] = ()) -> Any:
        """The run's completions as a pandas.DataFrame, a row each; see `eddecode.audit.export.to_frame`.

        Args:
            names: of the conditions; none: all.

        Raises:
            ConfigError: pandas is not installed, or the run has no such condition.
            StoreError: there is no run in the folder.
        """
        return to_frame(self.folder, names)

    def __str__(self) -> str:
        """The figures as a table, a line per condition."""
        return rates_as_text(self)

    @property
    def name(self) -> str:
        """The name of the run: that of its folder."""
        return self.folder.resolve().name

    @property
    def validity_judge(self) -> str | None:
        """Name of the first judge of validity, if there is one."""
        return next((judge.name for judge in self.judges if judge.role == "validity"), None)

    @property
    def line(self) -> tuple[ConditionSummary, ...]:
        """The conditions of the pair itself: aligned, base, and ED along α."""
        return tuple(entry for entry in self.conditions if entry.plain)

    @property
    def has_headline(self) -> bool:
        """Whether the summary has headline figures, or at least the reason why there are none."""
        return self.headline != Headline()

    @property
    def best(self) -> ConditionSummary | None:
        """The condition of the headline α; None where there is none."""
        return self.find(self.headline.condition)

    def find(self, name: str | None) -> ConditionSummary | None:
        """The condition of that name, such as `ed@0.3+topk5`, or None."""
        wanted = None if name is None else canonical_name(name)
        return next((entry for entry in self.conditions if entry.name == wanted), None)

    def named(self, name: str) -> ConditionSummary:
        """The condition of that name.

        Raises:
            KeyError: the run has no such condition.
        """
        entry = self.find(name)
        if entry is None:
            raise KeyError(f"no condition {name}; the run has {self._names()}")
        return entry

    def condition(self, kind: str, alpha: str | float | None = None) -> ConditionSummary:
        """The condition `base`, `aligned`, or `ed` at an α, with nothing changed about it.

        Raises:
            KeyError: the run has no such condition.
        """
        for entry in self.line:
            if entry.condition == kind and (alpha is None or entry.alpha == alpha_text(alpha)):
                return entry
        raise KeyError(f"no condition {kind} {'' if alpha is None else alpha}; the run has {self._names()}")

    def harm_rate(self, kind: str, alpha: str | float | None = None) -> Rate:
        """The harm rate of a condition, with its interval.

        Raises:
            KeyError: the run has no such condition.
        """
        return self.condition(kind, alpha).rates[self.harm_judge]

    def harm(self, entry: ConditionSummary | None) -> Rate | None:
        """The harm rate of an entry; None without the entry, or where the harm judge has no rate there."""
        return None if entry is None else entry.rates.get(self.harm_judge)

    def _names(self) -> str:
        return ", ".join(entry.name for entry in self.conditions)


def rates_as_text(summary: Summary) -> str:
    """Rates in percent with their intervals, a line per condition: for a terminal or a notebook."""
    names = [judge.name for judge in summary.judges]
    rows = [["condition", *(f"{name} %" for name in names), "completions"]]
    for entry in summary.conditions:
        rates = [entry.rates.get(name) for name in names]
        rows.append([entry.label, *map(_rate_as_text, rates), f"{entry.completions:,}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(lines)


def _rate_as_text(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    return f"{100 * rate.rate:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _upgraded(data: dict[str, Any], schema: str) -> dict[str, Any]:
    """A summary of an older schema as one of this.

    Schema 1: its conditions had no name and no label. Schema 2: its intervals are another method's (their `method` says
    which), and it has no state of each α; the fields are the same.
    """
    conditions = data.get("conditions")
    if schema != _OLDER[0] or not isinstance(conditions, list):
        return data
    return {**data, "conditions": [_upgraded_condition(entry) for entry in conditions]}


def _upgraded_condition(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    kind, alpha = entry.get("condition"), entry.get("alpha")
    name, label = (f"ed@{alpha}", f"ED α={alpha}") if kind == "ed" else (kind, kind)
    return {"name": name, "label": label, **entry}


__all__ = ["FILE", "SCHEMA", "Summary"]
