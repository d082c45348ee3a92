"""Processes that are killed at random moments, while they decode or write what people read."""

from __future__ import annotations

import random
import shutil
import time
from functools import partial
from pathlib import Path

from benchmarks.reliability.child import Say, forked
from benchmarks.reliability.figure import Figure, count
from benchmarks.reliability.runs import config, run, table
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report.html import html_report
from eddecode.audit.store.store import Store
from eddecode.utils.files import atomic_write


def of_audits(root: Path, rng: random.Random, kills: int) -> list[Figure]:
    """An audit that is killed at random moments and run again, each time from where it was."""
    alone = root / "alone"
    run(config(root / "warm"))  # what is imported on first use
    begun = time.monotonic()
    run(config(alone))
    duration = time.monotonic() - begun
    wanted, killed, lost, doubled, different = table(alone), 0, 0, 0, 0
    while killed < kills:
        folder = root / f"kill-{killed}"
        reached = False
        while not reached and killed < kills:
            was, said = forked(partial(_audit, folder), rng.uniform(0, duration))
            killed += was
            reached = not was
            reported = max((int(line.split()[1]) for line in said if line.startswith("decode")), default=0)
            if (folder / "run.sqlite").is_file():
                with Store.read(folder) as store:
                    lost += max(0, reported - store.count())
                    doubled += store.count() - sum(map(len, store.done().values()))
        run(config(folder))
        different += table(folder) != wanted
        shutil.rmtree(folder)
    return [
        count(f"{killed} kills (SIGKILL at random moments): completions lost", lost),
        count("… stored twice", doubled),
        count("… runs that end in another table", different),
    ]


def _audit(folder: Path, say: Say) -> None:
    """An audit that says what it reports as done."""
    run(config(folder), on_progress=lambda progress: say(f"{progress.stage} {progress.done}"))


def of_reports(root: Path, rng: random.Random, kills: int) -> list[Figure]:
    """Reports and summaries that are killed while they are written: the file is the old one or the new one."""
    summary, half = run(config(root / "report", prompts=60)), 0
    target, old = root / "report" / "report.html", "<html>old</html>"

    def write(say: Say) -> None:
        for _ in range(1000):
            atomic_write(target, html_report(summary))
            summary.write()

    begun = time.monotonic()
    html_report(summary)
    once = time.monotonic() - begun
    for _ in range(kills):
        target.write_text(old)
        forked(write, rng.uniform(0, 2 * once))
        half += not target.read_text().rstrip().endswith("</html>")
        Summary.read(root / "report")  # raises for half a file
    return [count(f"{kills} kills while a report is written: half a file", half)]
