"""The commands `export` and `import inspect`: a run's completions in other formats. Inspect's logs need its extra."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from eddecode.cli.common import print_files, print_json, print_summary
from eddecode.cli.help_pages import PlainGroup
from eddecode.cli.messages import errors_as_messages, stderr_console, stdout_console
from eddecode.cli.options import AsJson, ConditionNames, RunFolder
from eddecode.cli.program import add_command
from eddecode.errors import ConfigError
from eddecode.utils.terminal import escape_control_chars

import_app = typer.Typer(
    help="Make a run of what another tool has logged.",
    no_args_is_help=True,
    cls=PlainGroup,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add_command(app, export)
    add_command(import_app, import_inspect, "import inspect")
    app.add_typer(import_app, name="import")


@import_app.callback()
def _group() -> None:
    """Make a run of what another tool has logged."""


def import_inspect(
    logs: Annotated[
        list[str],
        typer.Argument(
            help="Logs of eddecode/pair (.eval, .json) or folders of them; base=LOG or aligned=LOG for another model.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)],
    harm: Annotated[
        str | None,
        typer.Option(
            help="A scorer of the logs that judges harm, if eddecode's judges did not.", show_default=False
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="A judge (eddecode docs judges) for the imported completions; may be repeated.",
            show_default=False,
        ),
    ] = None,
    utility_loss: Annotated[
        float | None,
        typer.Option(help="Bound on lost utility, a share of the base's. Default: 0.1.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a run of logs of Inspect, for the gate and the report.

    What the logs lack is listed, and makes the gate inconclusive.
    """
    with errors_as_messages():
        require_inspect("importing its logs")
        from eddecode.integrations.inspect.import_logs import import_logs

        options = {} if utility_loss is None else {"utility_loss": utility_loss}
        result = import_logs(logs, out, harm=harm, judges=judge or (), **options)
        if as_json:
            summary = None if result.summary is None else result.summary.to_dict()
            return print_json(
                {"completions": result.completions, "missing": list(result.missing), "summary": summary}
            )
        if result.summary is not None:
            print_summary(result.summary)
            print_files(out)
        console = stdout_console(soft_wrap=True, highlight=False)
        console.print(Text(f"{result.completions:,} completions imported into {out}."))
        for sentence in result.missing:
            console.print(Text(f"Missing: {escape_control_chars(sentence)}."))
        if result.summary is None:
            console.print(
                Text(f"There are no figures yet; eddecode gate {out} --max-reversal 0.05 says why.")
            )


def export(
    run: RunFolder,
    to: Annotated[str, typer.Option(help="Format: jsonl, csv, parquet, inspect.")] = "jsonl",
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; parquet needs one. For inspect: a folder of .eval logs, or one .json. "
            "Default: standard output.",
            show_default=False,
        ),
    ] = None,
    condition: ConditionNames = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the completions as one JSON list; with --out, print what was written as JSON.",
        ),
    ] = False,
) -> None:
    """Write a run's completions and their verdicts to standard output or a file."""
    with errors_as_messages():
        from eddecode.audit.export.formats import export_to

        if as_json and out is None and to != "jsonl":
            raise ConfigError(f"--json without --out prints JSON, and --to is {to}; drop one of them")
        written = [str(out)]
        if to == "inspect" and out is not None and out.suffix != ".json":
            written = export_inspect_logs(run, out, condition or [], quiet=as_json)
        elif as_json and out is None:
            return print_json([json.loads(line) for line in export_to(run, to, out, condition or ())])
        else:
            for line in export_to(run, to, out, condition or ()):
                typer.echo(line)
        if as_json:
            print_json({"written": written, "format": to})


def export_inspect_logs(run: Path, out: Path, conditions: list[str], *, quiet: bool = False) -> list[str]:
    """Write a run as `.eval` logs, and name the files, on standard error too unless it is to be quiet."""
    require_inspect("writing its logs")
    from eddecode.integrations.inspect.export_logs import export_logs

    written = [str(path) for path in export_logs(run, out, conditions)]
    for path in [] if quiet else written:
        stderr_console().print(Text(f"Written: {escape_control_chars(path)}"), soft_wrap=True)
    return written


def require_inspect(what: str) -> None:
    """Raise ConfigError where Inspect is not installed."""
    if find_spec("inspect_ai") is None:
        raise ConfigError(
            f"{what} needs Inspect AI, which is not installed; install it: pip install 'eddecode[inspect]'"
        )
