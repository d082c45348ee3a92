"""Writes docs/commands.md from the command line's own help: `python docs/draw_commands.py [--check]`.

The page is made from the program and not by hand, so that an option cannot be missing or described differently.
`--check` compares and writes nothing (exit code 1 if the page is not that of the program).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from eddecode.cli import app
from eddecode.cli.program import EXAMPLES, EXIT_CODES

PAGE = Path(__file__).resolve().parent / "commands.md"
HEAD = f"""# Commands

Made from the program by `python docs/draw_commands.py`; `eddecode COMMAND --help` prints the same. Every command
has `--debug` (show the trace of an error, and not only its message) and `--help`, `-h`. `eddecode --install-completion`
sets up completion for your shell, `NO_COLOR=1` switches colors off.

{EXIT_CODES}
"""
COMMON = {"debug", "help"}


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command of a group and of its groups, with the names that lead to it, in order of these names."""
    for name, command in sorted(group.commands.items()):
        own = f"{path}{name}"
        if hasattr(command, "commands"):
            yield from commands(command, f"{own} ")
        else:
            yield own, command


def section(path: str, command: Any) -> str:
    """The part of the page that describes one command."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name not in COMMON]
    usage = " ".join(
        ["eddecode", path, *(_metavar(p) for p in arguments), *(["[OPTIONS]"] if options else [])]
    )
    lines = [f"## {path}", "", f"    {usage}", "", _prose(command.help), ""]
    rows = [(f"`{_metavar(p)}`", p) for p in arguments]
    rows += [(", ".join(f"`{name}`" for name in (*p.opts, *p.secondary_opts)), p) for p in options]
    if rows:
        lines += ["| | |", "|---|---|", *(f"| {names} | {_help(p)} |" for names, p in rows), ""]
    if path in EXAMPLES:
        lines += [f"Example: `{EXAMPLES[path]}`", ""]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    parts = [section(path, command) for path, command in commands(typer.main.get_command(app))]
    return "\n".join([HEAD, *parts]).rstrip() + "\n"


def _metavar(parameter: Any) -> str:
    name = parameter.name.upper().replace("_", "-") + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _help(parameter: Any) -> str:
    text = _prose(getattr(parameter, "help", None) or "").replace("|", "\\|")
    default = parameter.default
    shown = getattr(parameter, "show_default", False) and not isinstance(default, bool)
    if shown and default not in (None, "", (), []) and not callable(default):
        text += f" Default: `{default}`."
    return text + (" Required." if parameter.required and parameter.param_type_name == "option" else "")


def _prose(text: str) -> str:
    # In help, < and * are themselves; in Markdown they would be a tag and emphasis.
    return re.sub(r"([<*])", r"\\\1", " ".join(text.split()))


def main() -> int:
    """Write the page, or compare it."""
    made = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == made:
        return 0
    print(f"{PAGE.name} is not what the command line is now: run python docs/draw_commands.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
