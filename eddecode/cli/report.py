"""The commands for a finished run: `report`, `gate` and `compare`.

They decode nothing, so none of them imports torch. The result of `gate` is its exit code, for a release pipeline; its
sentence goes to standard output.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from eddecode.cli.common import print_json
from eddecode.cli.messages import errors_as_messages, print_notice, stdout_console
from eddecode.cli.options import AsJson
from eddecode.cli.program import add_command
from eddecode.cli.table_style import make_table
from eddecode.errors import ConfigError
from eddecode.utils.files import atomic_write

if TYPE_CHECKING:
    from eddecode.audit.policy import Policy
    from eddecode.audit.report.layout import Table as ReportTable

Run = Annotated[
    Path, typer.Argument(help="Folder of a finished run, or its summary.json.", show_default=False)
]
MaxReversal = Annotated[
    str | None,
    typer.Option(
        help="Limit on what the pair adds to its base's harm rate: 0.05, or 5%.", show_default=False
    ),
]
MaxWorstAttack = Annotated[
    str | None,
    typer.Option(
        help="Limit on the harm rate of the worst attack without training (audit --attacks): 0.3, or 30%.",
        show_default=False,
    ),
]
PolicyFile = Annotated[
    Path | None, typer.Option(help="TOML file with the limits; see eddecode docs gate.", show_default=False)
]
OtherPolicy = Annotated[
    bool,
    typer.Option("--other-policy", help="Accept another policy than the one that the run was started with."),
]
Out = Annotated[Path | None, typer.Option(help="File to write; - is standard output.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (report, gate, compare):
        add_command(app, command)


def report(
    run: Run,
    to: Annotated[
        str, typer.Option(help="Format: html, markdown (a section for a model card) or json.")
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; - is standard output. Default: report.html in the run; others: standard output.",
            show_default=False,
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Title of the report. Default: the name of the run.")
    ] = None,
    show_completions: Annotated[
        bool,
        typer.Option("--show-completions", help="Include the text of some completions; html only."),
    ] = False,
    max_reversal: MaxReversal = None,
    policy: PolicyFile = None,
    other_policy: OtherPolicy = False,
    as_json: AsJson = False,
) -> None:
    """Write the result of a run as a page, as a section for a model card, or as data.

    With a limit or a policy, the verdict of the gate is at the top.
    """
    with errors_as_messages():
        from eddecode.audit.analysis.summary import Summary
        from eddecode.audit.gate import judge_run
        from eddecode.audit.report.html import html_report
        from eddecode.audit.report.markdown import json_report, markdown_report

        to = "json" if as_json else to
        if to not in ("html", "markdown", "json"):
            raise ConfigError(f"there is no format {to!r:.60}; expected html, markdown or json")
        if show_completions and to != "html":
            raise ConfigError(
                f"--show-completions needs --to html, and --to is {to}; for completions as data use eddecode export"
            )
        summary = Summary.read(run)
        limits = _policy(policy, max_reversal) if policy is not None or max_reversal is not None else None
        decision = None
        if limits is not None:
            decision = judge_run(run, limits, other_policy=other_policy)
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
    max_worst_attack: MaxWorstAttack = None,
    policy: PolicyFile = None,
    other_policy: OtherPolicy = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Write the verdict as JSON to this file; - is standard output.", show_default=False
        ),
    ] = None,
    junit_file: Annotated[
        Path | None,
        typer.Option("--junit", help="Write the verdict as JUnit XML to this file.", show_default=False),
    ] = None,
) -> None:
    """Check a run against limits. Exit code 0: pass, 1: fail, 2: cannot be checked, 3: inconclusive."""
    with errors_as_messages() as ending:
        from eddecode.audit.gate import judge_run
        from eddecode.audit.gate_files import lines, write_json, write_junit
        from eddecode.utils.terminal import escape_control_chars

        if json_file is not None and json_file == junit_file:
            raise ConfigError(f"--json and --junit name one file, {json_file}; give each its own")
        limits = _policy(policy, max_reversal, max_worst_attack)
        decision = judge_run(run, limits, other_policy=other_policy)
        ending.code = decision.exit_code
        alone = str(json_file) == "-"  # then standard output holds the JSON and nothing else
        if junit_file is not None:
            write_junit(decision, junit_file)
        if alone:
            print_json(decision.to_dict())
        elif json_file is not None:
            write_json(decision, json_file)
        color = {"pass": "green", "fail": "red"}.get(decision.word, "yellow")
        console = stdout_console(highlight=False, soft_wrap=True, quiet=alone)
        first = Text(escape_control_chars(decision.first_line))
        console.print(Text(f"{decision.word.upper()}: ", style=f"bold {color}") + first)
        for line in lines(decision):
            console.print(Text(escape_control_chars(line)))
    raise typer.Exit(decision.exit_code)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of two or more finished runs.", show_default=False)
    ],
    to: Annotated[str, typer.Option(help="Format: table, html, markdown or json.")] = "table",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare the reversal of several runs: of different pairs, or of versions of one alignment."""
    with errors_as_messages():
        from eddecode.audit.analysis.summary import Summary
        from eddecode.audit.report import comparison

        writers: dict[str, Callable[[Any], str]] = {
            "html": comparison.to_html,
            "markdown": comparison.to_markdown,
            "json": comparison.to_json,
        }
        to = "json" if as_json else to
        if to != "table" and to not in writers:
            raise ConfigError(f"there is no format {to!r:.60}; expected table, html, markdown or json")
        if to == "table" and out is not None:
            raise ConfigError("--out needs --to html, markdown or json; a table goes to the terminal")
        found = comparison.compared([Summary.read(run) for run in runs])
        unlike = comparison.differences(found)
        if unlike:  # before the figures, and not after them
            print_notice(" ".join(unlike).removesuffix("."))
        if to == "table":
            _print_comparison(comparison.table(found), [comparison.reading(found)])
        else:
            _write(writers[to](found), out or Path("comparison.html" if to == "html" else "-"))


def _policy(path: Path | None, max_reversal: str | None, max_worst_attack: str | None = None) -> Policy:
    """The limits of a file, replaced by those of the command line."""
    from eddecode.audit.policy import Policy

    limit = None if max_reversal is None else parse_fraction(max_reversal, "--max-reversal")
    worst = None if max_worst_attack is None else parse_fraction(max_worst_attack, "--max-worst-attack")
    if path is None:
        return Policy(max_reversal=limit, max_worst_attack=worst)
    return Policy.read(path, max_reversal=limit, max_worst_attack=worst)


def parse_fraction(text: str, option: str) -> float:
    """`0.05` or `5%` as a fraction.

    Raises:
        ConfigError: the text is not a number.
    """
    number = text.strip()
    try:
        return float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise ConfigError(f"{option} is {text!r:.60}; expected a fraction such as 0.05, or 5%") from None


def _print_comparison(table: ReportTable, sentences: list[str]) -> None:
    """The table transposed, one column per run: nine columns of intervals do not fit a terminal."""
    from eddecode.utils.terminal import escape_control_chars

    console = stdout_console()
    columns = [[Text(escape_control_chars(cell)) for cell in row.cells] for row in table.rows]
    shown = make_table(table.columns[0])
    for cells in columns:
        shown.add_column(cells[0])
    for i, heading in enumerate(table.columns[1:], start=1):
        shown.add_row(heading, *(cells[i] for cells in columns))
    console.print(shown)
    for sentence in sentences:
        console.print(Text(escape_control_chars(sentence)))


def _write(text: str, target: Path) -> None:
    if str(target) == "-":
        typer.echo(text, nl=False)
        return
    atomic_write(target, text, error=ConfigError, hint="choose another with --out")
    from eddecode.utils.terminal import escape_control_chars

    Console(stderr=True, highlight=False, soft_wrap=True).print(
        Text(f"Written: {escape_control_chars(str(target))}")
    )
