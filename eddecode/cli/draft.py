"""A file that a command drafts for the user to fill in: where it goes, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import typer

from eddecode.cli.common import print_json
from eddecode.errors import ConfigError
from eddecode.utils.files import atomic_write


def write_draft(file: Path, text: str, then: str, *, another: str, as_json: bool) -> None:
    """Write a file that is to be filled in, and say so on standard error.

    Args:
        file: that must not exist; - is standard output.
        text: of it.
        then: what to do with it.
        another: how to choose another file, for the message where it cannot be written.
        as_json: print what was written as JSON.

    Raises:
        ConfigError: the file exists, or cannot be written.
    """
    if str(file) == "-":
        print_json({"written": None, "text": text}) if as_json else typer.echo(text, nl=False)
        return
    if file.exists():
        raise ConfigError(f"{file} exists; remove it, or {another}")
    atomic_write(file, text, error=ConfigError, hint=another)
    if as_json:
        return print_json({"written": str(file)})
    typer.echo(f"Written: {file}. {then}", err=True)
