"""What the commands share: options, errors as messages, and the output of a run.

Slow imports are inside the functions that need them. An expected error (`EddecodeError`) is one message on standard
error and exit code 2; Ctrl-C is exit code 130 and a line that tells how to continue.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from eddecode.errors import EddecodeError
from eddecode.prompts.presets import FAMILIES

if TYPE_CHECKING:
    from eddecode.audit.analysis.summary import Summary
    from eddecode.audit.config import AuditConfig
    from eddecode.audit.decode import Progress

_TEMPLATES = f"chat, a file with {{prompt}}, or a preset of the paper ({', '.join(FAMILIES)})."
BaseTemplate = Annotated[
    str | None, typer.Option(help=f"{_TEMPLATES} Default: a plain instruction template.")
]
AlignedTemplate = Annotated[str | None, typer.Option(help=f"{_TEMPLATES} Default: its chat template.")]
Dtype = Annotated[str, typer.Option(help="Data type of the weights: auto, float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 … Default: a GPU if there is one.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling on the contrasted distribution; 1 turns it off.")]
Tokens = Annotated[int, typer.Option(help="Maximum length of a completion, in tokens.")]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same completions.")]
Stop = Annotated[list[str] | None, typer.Option(help="A string that ends a completion; may be repeated.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default=False)]


def hide_download_bars(*checkpoints: str | Path) -> None:
    """Turn off the progress bars of huggingface_hub, unless a checkpoint is going to be downloaded."""
    if all(Path(checkpoint).is_dir() for checkpoint in checkpoints):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers is imported


def run_audit(
    config: AuditConfig,
    title: str | None = None,
    *,
    grow: bool = False,
    fresh: bool = False,
    refined: bool = False,
) -> Summary:
    """Run an audit with its progress and its notices on standard error, and a line if it continues an earlier run."""
    from eddecode.audit.refine import refine
    from eddecode.audit.run import audit

    hide_download_bars(config.base, config.aligned)
    with progress_on_stderr(Path(config.out)) as on_progress:
        options: dict[str, Any] = {"title": title, "on_progress": on_progress, "on_notice": print_notice}
        if refined:
            return refine(config, fresh=fresh, **options)
        return audit(config, grow=grow, fresh=fresh, **options)


def print_notice(text: str) -> None:
    """A sentence that nobody should miss, on standard error."""
    from eddecode.utils.terminal import escape_control_chars

    sentence = escape_control_chars(text)
    stderr_console().print(Text("WARNING: ", style="bold yellow") + Text(f"{sentence}."), soft_wrap=True)


@contextmanager
def progress_on_stderr(folder: Path) -> Iterator[Callable[[Progress], None]]:
    """A function that shows the progress of a run on standard error.

    Args:
        folder: of the run; named in a line if the run continues an earlier one.
    """
    from eddecode.cli.progress import progress_display

    console, begun = stderr_console(), False
    with progress_display(console) as display:

        def on_progress(progress: Progress) -> None:
            nonlocal begun
            if not begun and progress.done and progress.stage != "judge":
                left = progress.total - progress.done
                what = f"{left} completions are left to decode" if left else "nothing is left to decode"
                console.print(Text(f"Continuing the run in {folder}: {what}."), soft_wrap=True)
            begun = True
            display(progress)

        yield on_progress


def print_summary(summary: Summary) -> None:
    """Print the tables of a run, their caption and the run's notes."""
    from eddecode.cli.tables import caption, comparison_tables, rates_table

    console = Console()
    console.print(rates_table(summary))
    for table in comparison_tables(summary):
        console.print(table)
    console.print(Text(caption(summary), style="dim"))
    for note in summary.notes:
        console.print(Text(f"Note: {note}."))
    console.print()


def print_files(out: Path) -> None:
    """Print the paths of a run's files."""
    console = Console(soft_wrap=True)
    for what, name in (("run", ""), ("summary", "summary.json"), ("picture", "curve.svg"), ("", "curve.png")):
        console.print(Text(f"{what:8} {out / name}"))


def stderr_console() -> Console:
    """The console for everything that is not data."""
    return Console(stderr=True, highlight=False)


@contextmanager
def errors_as_messages(run: Path | None = None) -> Iterator[None]:
    """Turn expected errors into a message and an exit code; any other error keeps its traceback.

    Args:
        run: folder of the run, named when the user interrupts the command.
    """
    try:
        yield
    except EddecodeError as error:
        _print_error(str(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        kept = (
            f" The completions so far are in {run}; the same command continues from there."
            if run is not None
            else ""
        )
        stderr_console().print(Text(f"Stopped.{kept}"), soft_wrap=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader of a pipe has ended, as in `eddecode export RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except OSError as error:  # the disk is full, a folder cannot be written
        _print_error(str(error))
        raise typer.Exit(2) from None


def _print_error(message: str) -> None:
    """An error on standard error; a path or a text in it may hold control characters."""
    from eddecode.utils.terminal import escape_control_chars

    text = Text("error: ", style="bold red") + Text(escape_control_chars(message), style="red")
    stderr_console().print(text, soft_wrap=True)
