"""What an experiment is: a claim, a criterion that code evaluates, and the results that were measured.

Results are plain data, so they can be sent between processes and stored as JSON; a picture is drawn from that data
alone. So the page can be written again from a stored run, without any model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness


@dataclass(frozen=True)
class ResultTable:
    """A table of the page: a title, the names of its columns, rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {"title": self.title, "columns": list(self.columns), "rows": [list(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResultTable:
        """The inverse of `to_dict`."""
        return cls(data["title"], tuple(data["columns"]), [tuple(row) for row in data["rows"]])


@dataclass(frozen=True)
class ExperimentResult:
    """What one seed gave.

    Attributes:
        holds: whether the criterion is met.
        summary: the deciding figures in one sentence.
        figures: these and further figures, as JSON data.
        tables: tables for the page.
    """

    holds: bool
    summary: str
    figures: dict[str, Any]
    tables: list[ResultTable] = field(default_factory=list)


@dataclass(frozen=True)
class Experiment:
    """One claim, and how it is tested.

    Attributes:
        name: short; used in findings.json and as the file name of the picture.
        point: the number of the paper's finding that it belongs to, on the page.
        title: heading on the page.
        claim: the statement that is tested.
        criterion: when the claim counts as reproduced, in words that say what `measure` computes.
        measure: computes the result of one seed.
        draw: draws a picture of the results, one per seed; None: no picture.
        limits: what the toy language cannot show about the claim.
        headline: measured on every seed; the other experiments are measured on the first seed.
    """

    name: str
    point: int
    title: str
    claim: str
    criterion: str
    measure: Callable[[ExperimentHarness], ExperimentResult]
    draw: Callable[[Sequence[ExperimentResult]], Figure] | None = None
    limits: str = ""
    headline: bool = False


@dataclass(frozen=True)
class ReplicatedResult:
    """An experiment with its results, one per seed."""

    experiment: Experiment
    results: list[ExperimentResult]

    @property
    def reproduced(self) -> bool:
        """Whether the criterion is met on every seed."""
        return all(result.holds for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """As findings.json has it: figures that are not finite become null; tables are those of the first seed."""
        return {
            "name": self.experiment.name,
            "claim": self.experiment.claim,
            "criterion": self.experiment.criterion,
            "reproduced": self.reproduced,
            "figures": {
                "said": [result.summary for result in self.results],
                "holds": [result.holds for result in self.results],
                "seeds": [_finite(result.figures) for result in self.results],
                "tables": [table.to_dict() for table in self.results[0].tables],
            },
        }

    @classmethod
    def from_dict(cls, experiment: Experiment, data: Mapping[str, Any]) -> ReplicatedResult:
        """The results of an experiment from its entry in findings.json."""
        stored = data["figures"]
        tables = [ResultTable.from_dict(table) for table in stored.get("tables", [])]
        results = [
            ExperimentResult(holds, summary, figures, tables if i == 0 else [])
            for i, (holds, summary, figures) in enumerate(
                zip(stored["holds"], stored["said"], stored["seeds"], strict=True)
            )
        ]
        return cls(experiment, results)


def _finite(value: Any) -> Any:
    """JSON data with None for every number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
