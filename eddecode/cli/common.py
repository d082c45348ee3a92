"""What the commands share: a run with its progress, and the output of it.

Slow imports are inside the functions that need them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from eddecode.cli.messages import errors_as_messages, print_notice, stderr_console, stdout_console
from eddecode.errors import ConfigError
from eddecode.utils.torchrun import launched, rank

if TYPE_CHECKING:
    from eddecode.audit.analysis.summary import Summary
    from eddecode.audit.config import AuditConfig
    from eddecode.audit.decode import LoadedSamplers, Progress


def print_json(value: Any) -> None:
    """Data on standard output as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=True))


def standard_input() -> str:
    """The text on standard input, without the line break at its end."""
    try:
        data = None if sys.stdin is None else sys.stdin.buffer.read()
    except OSError as error:
        raise ConfigError(
            f"standard input cannot be read ({error.strerror}); give the prompt as text"
        ) from None
    if data is None:
        raise ConfigError("standard input is closed; pipe the prompt to it, or give the prompt as text")
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except ValueError as error:
        raise ConfigError(f"what standard input holds is not UTF-8 ({error}); convert it") from None


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
    refine: bool = False,
    shard: str | None = None,
    workers: str | None = None,
) -> Summary:
    """Run an audit with its progress and its notices on standard error, and a line if it continues an earlier run."""
    from eddecode.audit.refine import refine as refined_audit
    from eddecode.audit.run import audit

    hide_download_bars(config.base, config.aligned)
    with progress_on_stderr(Path(config.out)) as on_progress:
        options: dict[str, Any] = {"title": title, "on_progress": on_progress, "on_notice": print_notice}
        if workers is not None:
            options["sampler"] = _ray_samplers(workers)
        with _over_processes(options):
            if refine:
                return refined_audit(config, fresh=fresh, **options)
            return audit(config, grow=grow, fresh=fresh, shard=shard, **options)


def follows_another_process() -> bool:
    """Where torchrun started this process beside a first one: do what that one does with the models, and say True."""
    if rank() == 0:
        return False
    from eddecode.integrations.tensor_parallel import follow

    with errors_as_messages():
        follow()
    return True


@contextmanager
def _over_processes(options: dict[str, Any]) -> Iterator[None]:
    """Within the block models are split over the processes of torchrun, if it started this one."""
    if not launched():
        yield
        return
    if "sampler" in options:
        raise ConfigError(
            "--workers starts processes itself; start eddecode without torchrun, or drop --workers"
        )
    from eddecode.integrations.tensor_parallel import dismiss, lead

    options["sampler"] = lead()
    yield
    dismiss()


def _ray_samplers(workers: str) -> LoadedSamplers:
    """Samplers whose work is done by Ray's actors."""
    from eddecode.audit.decode import LoadedSamplers
    from eddecode.integrations.ray_workers import RaySampler, Workers

    asked = Workers.parse(workers)
    return LoadedSamplers(lambda config, model: RaySampler(config, model, asked))


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
    from eddecode.cli.tables import benign_table, caption, comparison_tables, rates_table

    console = stdout_console()
    console.print(rates_table(summary))
    for table in comparison_tables(summary):
        console.print(table)
    if summary.benign is not None:
        console.print(benign_table(summary))
    console.print(Text(caption(summary), style="dim"))
    for note in summary.notes:
        console.print(Text(f"Note: {note}."))
    console.print()


def print_notes(summary: Summary) -> None:
    """Print the notes of a run that has no figures yet."""
    for note in summary.notes:
        stdout_console(soft_wrap=True).print(Text(f"{note[:1].upper()}{note[1:]}."))


def print_files(out: Path) -> None:
    """Print the paths of a run's files."""
    console = stdout_console(soft_wrap=True)
    for what, name in (("run", ""), ("summary", "summary.json"), ("picture", "curve.svg"), ("", "curve.png")):
        console.print(Text(f"{what:8} {out / name}"))
