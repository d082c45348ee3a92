"""The command line: the same calls as from Python, and tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.cli.commands import app, main

__all__ = ["app", "main"]

__getattr__ = lazy_exports(__name__, {"app": "eddecode.cli.commands", "main": "eddecode.cli.commands"})
