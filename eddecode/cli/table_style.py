"""The one style of the tables on a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text


def make_table(first: str, *others: str | Text, title: str | None = None) -> Table:
    """An empty table: the first column aligned to the left, the others to the right; cells wrap at words."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left"
    )
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table
