"""What spreadsheets make of a CSV file: its lines, and the cells that they would run as a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t")


def begins_as_formula(text: str) -> bool:
    """Whether a spreadsheet would run a cell with this text; an apostrophe in front keeps it from that."""
    return text.startswith(_FORMULA)


def csv_line(values: Sequence[Any]) -> str:
    """One record of a CSV file, without the end of the line."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()
