"""The progress of a run on the console."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from eddecode.audit.decode import Progress


@contextmanager
def progress_display(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line per tenth, so that a log stays short."""
    if not console.is_terminal:
        yield _lines(console)
        return
    from rich import progress as bars

    columns = (bars.TextColumn("{task.description:9}"), bars.BarColumn(None), bars.MofNCompleteColumn())
    times = (bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
    bar = bars.Progress(*columns, *times, console=console, transient=True)
    tasks: dict[str, bars.TaskID] = {}

    def display(progress: Progress) -> None:
        if progress.stage == "load":  # a line and no bar: loading has bars of its own
            console.print("Loading the models.")
            return
        if progress.stage not in tasks:
            bar.start()
            word = "decoding" if progress.stage == "decode" else "judging"
            tasks[progress.stage] = bar.add_task(word, total=progress.total)
        bar.update(tasks[progress.stage], completed=progress.done)

    try:
        yield display
    finally:
        bar.stop()


def _lines(console: Console) -> Callable[[Progress], None]:
    printed: dict[str, int] = {}  # stage → the last tenth with a line

    def display(progress: Progress) -> None:
        if progress.stage == "load":
            console.print("Loading the models.")
            return
        tenth = 10 * progress.done // max(progress.total, 1)
        if tenth > printed.get(progress.stage, -1):
            printed[progress.stage] = tenth
            word = "on disk" if progress.stage == "decode" else "judged"
            console.print(
                f"{progress.done} of {progress.total} completions {word}", highlight=False, soft_wrap=True
            )

    return display
