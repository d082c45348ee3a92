"""The progress of a run on the console."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from eddecode.audit.decode import Progress


class Pace:
    """How fast a stage goes, counted from the first report of it: what was there before is no work of now."""

    def __init__(self) -> None:
        self._stage, self._since, self._start, self._done = "", 0.0, 0, 0

    def see(self, progress: Progress) -> None:
        """Take note of a report."""
        if progress.stage != self._stage:
            self._stage, self._since, self._start = progress.stage, time.monotonic(), progress.done
        self._done = progress.done

    @property
    def rate(self) -> float:
        """Completions per second; 0 where nothing is done yet."""
        seconds = time.monotonic() - self._since
        return (self._done - self._start) / seconds if seconds > 0 else 0.0

    def rate_text(self) -> str:
        """`12.3/s`, or nothing."""
        return f"{self.rate:.3g}/s" if self.rate else ""

    def left_text(self, progress: Progress) -> str:
        """` (12.3/s, 4 min left)`, or nothing."""
        left = progress.total - progress.done
        if not self.rate or not left:
            return ""
        return f" ({self.rate_text()}, {_duration(left / self.rate)} left)"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def progress_display(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line per tenth, so that a log stays short."""
    if not console.is_terminal:
        yield _lines(console)
        return
    from rich import progress as bars

    columns = (bars.TextColumn("{task.description:9}"), bars.BarColumn(None), bars.MofNCompleteColumn())
    times = (bars.TextColumn("{task.fields[rate]}"), bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
    bar = bars.Progress(*columns, *times, console=console, transient=True)
    tasks: dict[str, bars.TaskID] = {}
    pace = Pace()

    def display(progress: Progress) -> None:
        if progress.stage == "load":  # a line and no bar: loading has bars of its own
            console.print("Loading the models.")
            return
        if progress.stage not in tasks:
            bar.start()
            word = "decoding" if progress.stage == "decode" else "judging"
            # What is there already is no work of now: the time left would be too short.
            tasks[progress.stage] = bar.add_task(word, total=progress.total, rate="")
        pace.see(progress)
        bar.update(tasks[progress.stage], completed=progress.done, rate=pace.rate_text())

    try:
        yield display
    finally:
        bar.stop()


def _lines(console: Console) -> Callable[[Progress], None]:
    printed: dict[str, int] = {}  # stage → the last tenth with a line
    pace = Pace()

    def display(progress: Progress) -> None:
        if progress.stage == "load":
            console.print("Loading the models.")
            return
        pace.see(progress)
        tenth = 10 * progress.done // max(progress.total, 1)
        if tenth > printed.get(progress.stage, -1):
            printed[progress.stage] = tenth
            word = "on disk" if progress.stage == "decode" else "judged"
            line = f"{progress.done} of {progress.total} completions {word}{pace.left_text(progress)}"
            console.print(line, highlight=False, soft_wrap=True)

    return display
