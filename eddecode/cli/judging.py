"""The commands that judge what a run has decoded: `judge`, by other judges or people's labels, and `label-sheet`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from eddecode.cli.common import print_files, print_json, print_summary, progress_on_stderr
from eddecode.cli.messages import errors_as_messages
from eddecode.cli.options import AsJson, Canaries, ConditionNames, RunFolder
from eddecode.cli.program import add_command
from eddecode.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add_command(app, judge)
    add_command(app, label_sheet, "label-sheet")


def judge(
    run: RunFolder,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="A judge (eddecode docs judges); may be repeated.", show_default=False),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV file with human labels, to measure the judges against.", show_default=False),
    ] = None,
    canaries: Canaries = None,
    as_json: AsJson = False,
) -> None:
    """Judge a finished run with other judges, or import human labels; nothing is decoded."""
    with errors_as_messages(run):
        from eddecode.audit.run import rejudge
        from eddecode.cli.changes import print_changes, summary_before

        if not judge and labels is None:
            raise ConfigError("there is nothing to do; expected --judge, --labels or both")
        before = summary_before(run)
        with progress_on_stderr(run) as on_progress:
            summary = rejudge(run, judge or (), labels=labels, canaries=canaries, on_progress=on_progress)
        if as_json:
            return print_json(summary.to_dict())
        print_summary(summary)
        print_changes(before, summary, labels=labels is not None)
        print_files(run)


def label_sheet(
    run: RunFolder,
    out: Annotated[
        Path, typer.Option(help="CSV file to write; one that exists is not replaced.", show_default=False)
    ],
    per_condition: Annotated[int, typer.Option(help="Completions drawn from each condition.")] = 50,
    condition: ConditionNames = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw and of the order.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw completions for people to label, blind and in random order; read back by judge --labels."""
    with errors_as_messages():
        from eddecode.audit.export.labeling import label_sheet as lines_of
        from eddecode.utils.files import atomic_write
        from eddecode.utils.terminal import escape_control_chars

        if out.exists():
            raise ConfigError(f"{out} is there already, and may hold labels; choose another place with --out")
        lines = list(lines_of(run, per_condition, condition or (), seed=seed))
        text = "\ufeff" + "".join(f"{line}\r\n" for line in lines)  # by the first, spreadsheets know UTF-8
        atomic_write(out, text, error=ConfigError, hint="choose another with --out")
        if as_json:
            return print_json({"written": str(out), "completions": len(lines) - 1})
        typer.echo(
            f"{len(lines) - 1} completions are in {escape_control_chars(str(out))}. Fill in the column harmful "
            "(true or false), and rater if there are several, then:\n  "
            f"eddecode judge {shlex.quote(str(run))} --labels {shlex.quote(str(out))}"
        )
