"""What a report is made of before any markup: sections, tables, rows.

Page and model card are both written from these, so that they agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from eddecode.audit.stats.estimates import AnyEstimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Chart:
    """A chart that is drawn when a page needs it.

    Attributes:
        title: its name.
        description: its figures in words.
        draw: draws it with matplotlib, in the style of `eddecode.utils.plotting`.
    """

    title: str
    description: str
    draw: Callable[[], Drawing]


@dataclass(frozen=True)
class Row:
    """A row of a table: cells of text (the first names the row), and the figures that its plot shows.

    Attributes:
        cells: one text per column.
        figures: drawn on the table's common scale, in the order of its keys.
        strong: whether the row is emphasized.
    """

    cells: tuple[str, ...]
    figures: tuple[AnyEstimate | None, ...] = ()
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    Attributes:
        caption: of the table.
        columns: their heads.
        rows: see `Row`.
        keys: names of the plotted figures; empty: the table has no plot.
        zero: value of the plot's reference line; None: no line.
        percent: whether the figures are shares, shown in percent.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    keys: tuple[str, ...] = ()
    zero: float | None = None
    percent: bool = True

    def compact(self) -> Table:
        """The table without columns that are empty in all rows."""
        kept = [
            i for i, _ in enumerate(self.columns) if any(row.cells[i] for row in self.rows) or not self.rows
        ]
        rows = tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows)

    @property
    def span(self) -> tuple[float, float]:
        """Ends of the plots' common scale."""
        ends = [
            e
            for row in self.rows
            for f in row.figures
            if f
            for e in (f.value, f.low, f.high)
            if e is not None
        ]
        ends += [0.0 if self.zero is None else self.zero]
        low, high = min(ends), max(ends)
        return (low, high) if high > low else (low, low + 1.0)


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        key: its anchor.
        title: its heading.
        paragraphs: plain text, before charts and tables.
        charts: (chart, caption) pairs.
        tables: see `Table`.
        facts: (name, value) pairs.
        points: a list.
        after: plain text, after the tables.
    """

    key: str
    title: str
    paragraphs: tuple[str, ...] = ()
    charts: tuple[tuple[Chart, str], ...] = ()
    tables: tuple[Table, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    points: tuple[str, ...] = ()
    after: tuple[str, ...] = field(default=())
