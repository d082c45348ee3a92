"""What the commands share: options, errors as messages, and a run as it is shown.

Heavy imports wait for the command that needs them. What goes wrong on purpose (`EddecodeError`) is one message on
standard error and exit code 2; Ctrl-C is exit code 130 and a line that says how to go on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from eddecode.errors import EddecodeError
from eddecode.prompts.presets import FAMILIES

if TYPE_CHECKING:
    from eddecode.audit.analysis.summary import Summary
    from eddecode.audit.config import AuditConfig
    from eddecode.audit.decode import Progress

Base = Annotated[str, typer.Option(help="Base checkpoint: a local folder or a hub id.", show_default=False)]
Aligned = Annotated[
    str, typer.Option(help="Aligned checkpoint: a local folder or a hub id.", show_default=False)
]
_TEMPLATES = f"chat, a file with {{prompt}}, or a family of the paper ({', '.join(FAMILIES)})."
BaseTemplate = Annotated[
    str | None, typer.Option(help=f"{_TEMPLATES} Default: a plain instruction template.")
]
AlignedTemplate = Annotated[str | None, typer.Option(help=f"{_TEMPLATES} Default: its chat template.")]
Dtype = Annotated[str, typer.Option(help="Of the weights: auto, float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 … Default: a GPU if there is one.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling on the contrasted distribution; 1 is off.")]
Tokens = Annotated[int, typer.Option(help="Length limit of a completion, in tokens.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same completions.")]
Stop = Annotated[list[str] | None, typer.Option(help="A string that ends a completion; may be repeated.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default=False)]


def quiet_if_local(*checkpoints: str | Path) -> None:
    """No bars of other libraries over ours, unless something is going to be downloaded."""
    if all(Path(checkpoint).is_dir() for checkpoint in checkpoints):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers is imported


def run_audit(config: AuditConfig, title: str | None = None) -> Summary:
    """Run an audit, saying on standard error how far it is and whether it goes on with an earlier one."""
    from eddecode.audit.run import audit

    quiet_if_local(config.base, config.aligned)
    with progress_on_stderr(Path(config.out)) as on_progress:
        return audit(config, title=title, on_progress=on_progress)


@contextmanager
def progress_on_stderr(folder: Path) -> Iterator[Callable[[Progress], None]]:
    """Something to call with the progress of a run."""
    from eddecode.cli.tables import progress_shown

    console, begun = stderr(), False
    with progress_shown(console) as shown:

        def on_progress(progress: Progress) -> None:
            nonlocal begun
            if not begun and progress.done and progress.stage != "judge":
                left = progress.total - progress.done
                what = f"{left} completions are left to decode" if left else "nothing is left to decode"
                console.print(Text(f"Going on with the run in {folder}: {what}."), soft_wrap=True)
            begun = True
            shown(progress)

        yield on_progress


def show(summary: Summary) -> None:
    """The table, and what its figures are."""
    from eddecode.cli.tables import beside_tables, caption, rates_table

    console = Console()
    console.print(rates_table(summary))
    for table in beside_tables(summary):
        console.print(table)
    console.print(Text(caption(summary), style="dim"))
    for note in summary.notes:
        console.print(Text(f"Note: {note}."))
    console.print()


def show_files(out: Path) -> None:
    """Where the run lies."""
    console = Console(soft_wrap=True)
    for what, name in (("run", ""), ("summary", "summary.json"), ("picture", "curve.svg"), ("", "curve.png")):
        console.print(Text(f"{what:8} {out / name}"))


def stderr() -> Console:
    """Where everything goes that is not data."""
    return Console(stderr=True, highlight=False)


@contextmanager
def errors_shown(run: Path | None = None) -> Iterator[None]:
    """What was raised on purpose becomes a message and an exit code; a bug keeps its traceback."""
    try:
        yield
    except EddecodeError as error:
        console = stderr()
        console.print(Text("error: ", style="bold red") + Text(str(error), style="red"), soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        kept = (
            f" What was decoded is in {run}; the same command goes on from there." if run is not None else ""
        )
        stderr().print(Text(f"Stopped.{kept}"), soft_wrap=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader of a pipe has gone, as in `eddecode export RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except OSError as error:  # the disk is full, a folder cannot be written
        stderr().print(Text(f"error: {error}", style="red"), soft_wrap=True)
        raise typer.Exit(2) from None
