"""The part of a summary that holds benchmarks: what a reversal costs besides harm, measured by other tools."""

from __future__ import annotations

from collections.abc import Iterable

from eddecode.audit.analysis.summary_parts import Part


class BenchmarkFigure(Part):
    """One metric of one task under one condition.

    Attributes:
        condition, alpha: as of the run's conditions; α as exact text.
        task: name of the benchmark.
        metric: such as `acc`; with the name of its filter in parentheses if it has one.
        value: of the metric.
        error: its standard error; None where the tool gives none.
        higher_is_better: None where the tool does not say.
        documents: how many were evaluated.
        version: of the task.
    """

    condition: str
    alpha: str
    task: str
    metric: str
    value: float
    error: float | None = None
    higher_is_better: bool | None = None
    documents: int = 0
    version: str = ""


def latest(figures: Iterable[BenchmarkFigure]) -> tuple[BenchmarkFigure, ...]:
    """The last figure of each condition, task and metric, in the order in which these came first."""
    kept: dict[tuple[str, str, str], BenchmarkFigure] = {}
    for figure in figures:
        kept[figure.condition, figure.task, figure.metric] = figure
    return tuple(kept.values())
