"""The commands that come after an audit: `report`, `gate`, `compare`.

They read a finished run and decode nothing, so that none of them imports torch. `gate` answers by its exit code, for a
pipeline; its words go to standard output.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eddecode.cli.common import errors_as_messages
from eddecode.errors import ConfigError
from eddecode.utils.files import atomic_write

if TYPE_CHECKING:
    from eddecode.audit.gate import Policy
    from eddecode.audit.report.layout import Table as ReportTable

Run = Annotated[
    Path, typer.Argument(help="Folder of a finished run, or its summary.json.", show_default=False)
]
MaxReversal = Annotated[
    str | None,
    typer.Option(help="Most that the pair may add to its base's harm rate: 0.05, or 5%.", show_default=False),
]
PolicyFile = Annotated[
    Path | None, typer.Option(help="TOML file with the limits; see docs/gate.md.", show_default=False)
]
Out = Annotated[Path | None, typer.Option(help="File to write; - is standard output.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (report, gate, compare):
        app.command()(command)


def report(
    run: Run,
    to: Annotated[str, typer.Option(help="html, markdown (a section for a model card) or json.")] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; - is standard output. Default: report.html in the run; others to standard output.",
            show_default=False,
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading, instead of the run's name.")] = None,
    show_completions: Annotated[
        bool,
        typer.Option("--show-completions", help="Add some completions, as the models wrote them; html only."),
    ] = False,
    max_reversal: MaxReversal = None,
    policy: PolicyFile = None,
) -> None:
    """Write a run's finding for people: one page, a section for a model card, or data.

    With a limit or a policy the verdict of the gate goes first.
    """
    with errors_as_messages():
        from eddecode.audit.analysis.summary import Summary
        from eddecode.audit.gate import decide
        from eddecode.audit.report.html import html_report
        from eddecode.audit.report.markdown import json_report, markdown_report

        if to not in ("html", "markdown", "json"):
            raise ConfigError(f"there is no format {to!r:.60}; expected html, markdown or json")
        if show_completions and to != "html":
            raise ConfigError(
                f"--show-completions goes with --to html, and --to is {to}; completions as data: eddecode export"
            )
        summary = Summary.read(run)
        limits = _policy(policy, max_reversal) if policy is not None or max_reversal is not None else None
        decision = decide(summary, limits) if limits is not None else None
        if to == "html":
            text = html_report(summary, title=title, show_completions=show_completions, decision=decision)
        else:
            text = (markdown_report if to == "markdown" else json_report)(
                summary, title=title, decision=decision
            )
        target = out or (summary.folder / "report.html" if to == "html" else Path("-"))
        _write(text, target)


def gate(
    run: Run,
    max_reversal: MaxReversal = None,
    policy: PolicyFile = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the verdict as JSON to this file.", show_default=False),
    ] = None,
    junit_file: Annotated[
        Path | None,
        typer.Option("--junit", help="Write the verdict as JUnit XML to this file.", show_default=False),
    ] = None,
) -> None:
    """Judge a run by limits set beforehand. Exit code 0: pass, 1: fail, 2: cannot be judged, 3: inconclusive."""
    with errors_as_messages():
        from eddecode.audit.analysis.summary import Summary
        from eddecode.audit.gate import decide, write_json, write_junit
        from eddecode.utils.terminal import escape_control_chars

        limits = _policy(policy, max_reversal)
        decision = decide(Summary.read(run), limits)
        if json_file is not None:
            write_json(decision, json_file)
        if junit_file is not None:
            write_junit(decision, junit_file)
        colour = {"pass": "green", "fail": "red"}.get(decision.word, "yellow")
        console = Console(highlight=False, soft_wrap=True)
        said = escape_control_chars(decision.sentence)
        console.print(Text(f"{decision.word.upper()}: ", style=f"bold {colour}") + Text(said))
    raise typer.Exit(decision.exit_code)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of two or more finished runs.", show_default=False)
    ],
    to: Annotated[str, typer.Option(help="table, html, markdown or json.")] = "table",
    out: Out = None,
) -> None:
    """Put several runs side by side: pairs, or versions of one alignment, by how much each gives away."""
    with errors_as_messages():
        from eddecode.audit.analysis.summary import Summary
        from eddecode.audit.report import comparison

        writers: dict[str, Callable[[Any], str]] = {
            "html": comparison.to_html,
            "markdown": comparison.to_markdown,
            "json": comparison.to_json,
        }
        if to != "table" and to not in writers:
            raise ConfigError(f"there is no format {to!r:.60}; expected table, html, markdown or json")
        if to == "table" and out is not None:
            raise ConfigError("--out goes with --to html, markdown or json; a table goes to the terminal")
        found = comparison.compared([Summary.read(run) for run in runs])
        if to == "table":
            _print_comparison(
                comparison.table(found), [comparison.reading(found), *comparison.differences(found)]
            )
        else:
            _write(writers[to](found), out or Path("comparison.html" if to == "html" else "-"))


def _policy(path: Path | None, max_reversal: str | None) -> Policy:
    """The limits of a file and of the command line, which goes first."""
    from eddecode.audit.gate import Policy

    limit = None if max_reversal is None else parse_share(max_reversal, "--max-reversal")
    if path is None:
        return Policy(max_reversal=limit)
    return Policy.read(path, max_reversal=limit)


def parse_share(text: str, option: str) -> float:
    """`0.05` or `5%` as a fraction.

    Raises:
        ConfigError: not a number.
    """
    number = text.strip()
    try:
        return float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise ConfigError(f"{option} is {text!r:.60}; expected a fraction such as 0.05, or 5%") from None


def _print_comparison(table: ReportTable, said: list[str]) -> None:
    """One block of lines per run: nine columns of intervals do not fit a terminal."""
    from eddecode.utils.terminal import escape_control_chars

    console = Console()
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    shown.add_column(table.columns[0])
    for row in table.rows:
        shown.add_column(Text(escape_control_chars(row.cells[0])), overflow="fold")
    for i, head in enumerate(table.columns[1:], start=1):
        shown.add_row(head, *(Text(escape_control_chars(row.cells[i])) for row in table.rows))
    console.print(shown)
    for line in said:
        console.print(Text(escape_control_chars(line)))


def _write(text: str, target: Path) -> None:
    if str(target) == "-":
        typer.echo(text, nl=False)
        return
    atomic_write(target, text, error=ConfigError, hint="choose another with --out")
    from eddecode.utils.terminal import escape_control_chars

    Console(stderr=True, highlight=False, soft_wrap=True).print(
        Text(f"Written: {escape_control_chars(str(target))}")
    )
