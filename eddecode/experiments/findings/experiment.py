"""What an experiment is: a claim, a criterion that code evaluates, and the results that were measured.

Results are plain data, so they can be sent between processes and stored as JSON; a picture is drawn from that data
alone. So the page can be written again from a stored run, without any model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
        pool: judges all seeds together, from the figures of each; None: the criterion must be met on every seed.
        question: a question that the paper leaves open. The page answers it with yes where the criterion is met and
            with no where it is not, and does not count it as a finding.
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
    pool: Callable[[Sequence[ExperimentResult]], ExperimentResult] | None = None
    question: bool = False


@dataclass(frozen=True)
class ReplicatedResult:
    """An experiment with its results, one per seed.

    Attributes:
        experiment: what was tested.
        results: one per seed.
        measured: when and where: commit, processor; empty where that is not known.
    """

    experiment: Experiment
    results: list[ExperimentResult]
    measured: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def pooled(self) -> ExperimentResult | None:
        """The result of all seeds together, for an experiment that is judged so."""
        return None if self.experiment.pool is None else self.experiment.pool(self.results)

    @property
    def reproduced(self) -> bool:
        """Whether the criterion is met: by all seeds together, or else on every seed."""
        if self.pooled is not None:
            return self.pooled.holds
        return all(result.holds for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """As findings.json has it: figures that are not finite become null; tables are those of the first seed."""
        return {
            "name": self.experiment.name,
            "claim": self.experiment.claim,
            "criterion": self.experiment.criterion,
            "reproduced": self.reproduced,
            **({"measured": dict(self.measured)} if self.measured else {}),
            "figures": {
                "said": [result.summary for result in self.results],
                "holds": [result.holds for result in self.results],
                "seeds": [_finite(result.figures) for result in self.results],
                **({"pooled": _finite(self.pooled.figures)} if self.pooled is not None else {}),
                "tables": [table.to_dict() for table in self.results[0].tables],
            },
        }

    @classmethod
    def from_dict(cls, experiment: Experiment, data: Mapping[str, Any]) -> ReplicatedResult:
        """The results of an experiment from its entry in findings.json.

        Raises:
            ValueError: the entry was judged by another criterion than the experiment has now.
        """
        if data["criterion"] != experiment.criterion:
            raise ValueError(f"{experiment.name} was judged by another criterion; measure it again")
        stored = data["figures"]
        tables = [ResultTable.from_dict(table) for table in stored.get("tables", [])]
        results = [
            ExperimentResult(holds, summary, figures, tables if i == 0 else [])
            for i, (holds, summary, figures) in enumerate(
                zip(stored["holds"], stored["said"], stored["seeds"], strict=True)
            )
        ]
        return cls(experiment, results, data.get("measured", {}))


def _finite(value: Any) -> Any:
    """JSON data with None for every number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
