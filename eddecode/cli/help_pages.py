"""Help of commands as plain text, which shows every option's name whole at 80 columns; tables would cut long names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

# The classes of click, which newer releases of typer bring along under another name.
_BaseContext: Any = TyperCommand.context_class
_BaseFormatter: Any = _BaseContext.formatter_class

_WHOLE = "\u2011"  # a hyphen at which no line ends


class _Formatter(_BaseFormatter):  # type: ignore[misc]
    """Wraps lines at spaces alone: a name such as --max-reversal can be copied from the page."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _WHOLE))

    def write_dl(self, rows: Sequence[tuple[str, str]], *widths: int, **named: int) -> None:
        super().write_dl([(name, text.replace("-", _WHOLE)) for name, text in rows], *widths, **named)

    def getvalue(self) -> str:
        return str(super().getvalue()).replace(_WHOLE, "-")


class _Context(_BaseContext):  # type: ignore[misc]
    formatter_class = _Formatter


class PlainCommand(TyperCommand):
    """A command with such a page; see the module."""

    context_class = _Context


class PlainGroup(TyperGroup):
    """A group of commands with such a page."""

    context_class = _Context
