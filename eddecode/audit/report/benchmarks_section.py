"""The section with benchmarks: one row per condition, one column per task and metric."""

from __future__ import annotations

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.benchmark_parts import BenchmarkFigure
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report.layout import Row, Section, Table

_Z = 1.96  # of a 95% interval by the normal approximation, as the harness's standard errors are meant


def benchmarks_section(summary: Summary) -> Section | None:
    """What the pair can do at each α besides harm; None where no benchmark was run."""
    table = benchmarks_table(summary.benchmarks)
    if table is None:
        return None
    counts = {figure.task: figure.documents for figure in summary.benchmarks}
    tasks = ", ".join(f"{task} ({wording.pluralize(n, 'document')})" for task, n in counts.items())
    text = (
        f"What a reversal costs: benchmarks at every α, by lm-evaluation-harness, on {tasks}. An attacker who takes a "
        "larger α keeps less of what the base model knows. Intervals are 95%, from the tool's standard errors."
    )
    return Section("benchmarks", "Benchmarks", (text,), tables=(table,))


def benchmarks_table(figures: tuple[BenchmarkFigure, ...]) -> Table | None:
    """One row per condition; None without figures."""
    if not figures:
        return None
    columns = list(dict.fromkeys((figure.task, figure.metric) for figure in figures))
    cells = {(figure.condition, figure.task, figure.metric): _cell(figure) for figure in figures}
    rows = tuple(
        Row((name, *(cells.get((name, *column), wording.NONE) for column in columns)))
        for name in dict.fromkeys(figure.condition for figure in figures)
    )
    heads = [f"{task}, {metric}{_arrow(figures, task, metric)}" for task, metric in columns]
    return Table("Benchmarks against α", ("condition", *heads), rows)


def _arrow(figures: tuple[BenchmarkFigure, ...], task: str, metric: str) -> str:
    better = next(f.higher_is_better for f in figures if (f.task, f.metric) == (task, metric))
    return "" if better is None else " ↑" if better else " ↓"


def _cell(figure: BenchmarkFigure) -> str:
    value = wording.format_decimal(figure.value, 3)
    if figure.error is None:
        return value
    low, high = figure.value - _Z * figure.error, figure.value + _Z * figure.error
    return f"{value} [{wording.format_decimal(low, 3)}, {wording.format_decimal(high, 3)}]"
