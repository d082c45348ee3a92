"""The command `docs`: the documents that the help names, on a terminal, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import eddecode
from eddecode.cli.common import print_json
from eddecode.cli.messages import errors_as_messages
from eddecode.cli.options import AsJson
from eddecode.errors import ConfigError
from eddecode.utils.validation import did_you_mean


def docs(
    name: Annotated[
        str | None, typer.Argument(help="A document, such as judges. Default: list them.", show_default=False)
    ] = None,
    where: Annotated[bool, typer.Option("--where", help="Print its path, and not its text.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a document (judges, gate, audit …), or list the documents with their titles."""
    with errors_as_messages():
        pages = documents()
        if name is None and as_json:
            typer.echo(json.dumps({page: str(path) for page, path in pages.items()}, indent=2))
        elif name is None:
            width = max(map(len, pages))
            for page, path in pages.items():
                typer.echo(f"{page:{width}}  {path if where else _title(path)}")
        elif (key := name.removesuffix(".md").removeprefix("docs/")) not in pages:
            raise ConfigError(f"there is no document {name!r:.60}; {did_you_mean(key, list(pages))}")
        elif as_json:
            path = pages[key]
            text = path.read_text(encoding="utf-8")
            print_json({"name": key, "title": _title(path), "path": str(path), "text": text})
        else:
            path = pages[key]
            typer.echo(path if where else path.read_text(encoding="utf-8"), nl=where)


def documents() -> dict[str, Path]:
    """Name → file of every document: those of the installed package, or of the checkout.

    Raises:
        ConfigError: there are none.
    """
    package = Path(eddecode.__file__).parent
    for folder in (package / "docs", package.parent / "docs"):
        found = {path.stem: path for path in sorted(folder.glob("*.md"))}
        if found:
            return found
    raise ConfigError("this installation has no documents; they are in the folder docs of the source")


def _title(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), path.stem)
