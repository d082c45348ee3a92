"""`python -m benchmarks compare`: measure eddecode against the alternatives, and say what came of it.

Per pair: peak memory first (a process per contender), then all contenders are made and warmed up, what the runs will
take is estimated and said, and the rounds are run. Results are written after every round, so that a run that is
interrupted keeps what it has; `--resume` adds what is missing, and with `--budget` a long measurement comes in pieces.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils import logging

from benchmarks import memory, picture, report, store
from benchmarks.contenders import CONTENDERS, USUAL, Contender
from benchmarks.measure import Bandwidth, interleave, prepare
from benchmarks.pairs import BUNDLED, DTYPES, SIZES, VARIANTS, BenchPair, build, bundled_present
from benchmarks.tasks import TASKS
from eddecode.errors import ConfigError, EddecodeError

MORE_TO_DO = 3  # exit code

console = Console()
if not console.is_terminal:
    console = Console(width=120)  # a file has room for the tables


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 2 for options that make no sense, 3 if the budget left work over."""
    options = parse(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        if options.redraw:
            saved = store.read(options.redraw)
            publish(options, saved["machine"], saved["results"])
            return 0
        torch.set_num_threads(options.threads)
        gc.freeze()  # garbage is collected before every run: the libraries need not be looked through each time
        session = Session(options)
        report.show_machine(console, session.machine)
        for size in options.sizes:
            for dtype in options.dtypes:
                for variant in options.pair:
                    measure_pair(session, size, dtype, variant)
        publish(options, session.machine, list(session.results.values()))
    except EddecodeError as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False)
        return 2
    if session.left_out:
        console.print(f"left for the next time: {', '.join(session.left_out)}", highlight=False)
    return MORE_TO_DO if session.left_out else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; lists are separated by commas."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    cuda = torch.cuda.is_available()
    sizes = ["10M", "130M", *(["7B"] if cuda else []), *([BUNDLED] if bundled_present() else [])]

    def add(name: str, known: list[str], default: list[str], text: str) -> None:
        parser.add_argument(
            name,
            type=lambda value: choices(value, known),
            default=default,
            help=f"{text}: {', '.join(known)} (default: {','.join(default)})",
        )

    add("--tasks", list(TASKS), list(TASKS), "tasks")
    add("--sizes", [*SIZES, BUNDLED], sizes, "pairs; 7B wants a GPU")
    add("--dtypes", list(DTYPES), list(DTYPES), "dtypes of the weights")
    add("--contenders", list(CONTENDERS), USUAL, "who takes part")
    add("--pair", list(VARIANTS), ["full"], "two checkpoints, or base + low rank")
    parser.add_argument("--repeats", type=int, help="rounds (default: 5; 2 with --quick)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="default: torch's own choice"
    )
    parser.add_argument("--device", default="cuda" if cuda else "cpu", help="default: a GPU if there is one")
    parser.add_argument(
        "--limit", type=float, default=300, help="seconds; longer runs are left out (default: 300)"
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument(
        "--quick", action="store_true", help="an eighth of the tokens, 2 rounds, no peak memory"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--resume", action="store_true", help="add the rounds that --out does not have yet")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), metavar="SECONDS",
        help="begin no round that would end later; exit code 3 if one is left out",
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the picture (.svg)")
    parser.add_argument(
        "--from", dest="redraw", type=Path, nargs="+", metavar="FILE", help="only show what --out has written"
    )
    options = parser.parse_args(arguments)
    if options.resume and options.out is None:
        parser.error("--resume wants the --out FILE that is to be added to")
    options.repeats = options.repeats or (2 if options.quick else 5)
    options.memory = options.memory and not options.quick
    return options


def choices(value: str, known: list[str]) -> list[str]:
    """A list of names, each of them known."""
    names = [name.strip() for name in value.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'}; expected some of {', '.join(known)}"
        )
    return names


class Session:
    """One call of the command: what it was asked for, what is known so far, and the time it has left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.start = time.perf_counter()
        self.machine = report.machine(options.device, options.threads)
        self.settings = {
            name: getattr(options, name) for name in ("repeats", "quick", "threads", "device", "limit")
        }
        self.results = store.resumed(options.out, self.settings) if options.resume else {}
        self.left_out: list[str] = []
        self.rounds = 0

    def missing(self, size: str, dtype: str, variant: str) -> dict[str, int]:
        """Task → rounds that it lacks."""
        have = {
            task: store.rounds_of(self.results.get((size, dtype, variant, task)))
            for task in self.options.tasks
        }
        return {task: self.options.repeats - n for task, n in have.items() if n < self.options.repeats}

    def has_time(self, seconds: float) -> bool:
        """Whether a round of that length still fits; the first one does in any case, or nothing would ever be done."""
        return self.rounds == 0 or time.perf_counter() - self.start + seconds <= self.options.budget

    def add(self, record: report.Record) -> None:
        """Take in rounds, and write all there is."""
        place = store.key(record)
        old = self.results.get(place)
        self.results[place] = report.joined(old, record) if old else record
        self.rounds += 1
        if self.options.out is not None:
            saved = {
                "machine": self.machine,
                "options": self.settings,
                "results": list(self.results.values()),
            }
            store.write(self.options.out, saved)


def measure_pair(session: Session, size: str, dtype: str, variant: str) -> None:
    """The rounds that are missing of all tasks on one pair."""
    options, missing = session.options, session.missing(size, dtype, variant)
    if not missing:
        return
    name = f"{size} {dtype}, {variant} pair"
    if not session.has_time(0):
        session.left_out += [f"{task} {name}" for task in missing]
        return
    console.rule(name)
    try:
        peaks = measure_memory(
            options, size, dtype, variant
        )  # before the pair takes memory in this process too
        pair = build(size, dtype, variant, options.device)
    except ConfigError as error:
        console.print(f"left out: {error}", highlight=False)
        return
    made = {who: CONTENDERS[who].make(pair) for who in options.contenders}
    with progress() as bar:
        for task, count in missing.items():
            measure_task(session, pair, made, task, count, peaks.get(task, {}), bar)
    report.show(console, [r for r in session.results.values() if store.key(r)[:3] == (size, dtype, variant)])
    del made
    gc.collect()


def measure_task(
    session: Session,
    pair: BenchPair,
    made: dict[str, Contender],
    task: str,
    count: int,
    peaks: dict[str, Any],
    bar: Progress,
) -> None:
    """Rounds of one task, until there are enough or time is up, under a bar that counts expected seconds."""
    options = session.options
    work = TASKS[task].work(pair, quick=options.quick)
    old = session.results.get((pair.size, pair.dtype, pair.variant, task))
    who = {name: made[name] for name in (old["contenders"] if old else made)}
    name = f"{task} {pair.size} {pair.dtype}, {pair.variant} pair"
    if not session.has_time(0):
        session.left_out.append(name)
        return
    line = bar.add_task(f"{task}: warming up", total=None)
    plan = prepare(who, work, float("inf") if old else options.limit)  # who took part goes on
    plan.missing.update(old["missing"] if old else {})
    seconds = sum(plan.seconds.values())
    less = f" (quick: {work.new_tokens} tokens, {len(work.prompts)} rows per α)" if options.quick else ""
    bar.console.print(
        f"{task}: {TASKS[task].title}{less}: {count} rounds, about {duration(count * seconds)}",
        highlight=False,
    )
    bar.update(line, description=task, total=count * seconds)
    bandwidth = Bandwidth(options.device)
    for number in range(options.repeats - count, options.repeats):
        if not plan.contenders or not session.has_time(seconds):
            session.left_out.append(name) if plan.contenders else None
            break
        rounds = interleave(plan, work, 1, bandwidth, lambda done: bar.advance(line, done), number)
        session.add(report.record(pair, TASKS[task], work, rounds, peaks, session.machine["commit"]))
    bar.remove_task(line)


def measure_memory(
    options: argparse.Namespace, size: str, dtype: str, variant: str
) -> dict[str, dict[str, Any]]:
    """Task → contender → what `memory.measure` found; empty if it was not asked for."""
    if not options.memory:
        return {}
    if size == BUNDLED and not bundled_present():
        return {}
    peaks: dict[str, dict[str, Any]] = {task: {} for task in options.tasks}
    with progress() as bar:
        line = bar.add_task("peak memory", total=len(peaks) * len(options.contenders))
        for task, found in peaks.items():
            for name in options.contenders:
                probe = memory.Probe(
                    name, task, size, dtype, variant, options.device, options.threads, options.quick
                )
                found[name] = memory.measure(probe)
                bar.advance(line)
    return peaks


def progress() -> Progress:
    """A bar that goes away when it is full."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def publish(options: argparse.Namespace, info: report.Record, results: list[report.Record]) -> None:
    """What is left to say when all pairs are done; tables again for results that were only read."""
    if options.redraw:
        report.show_machine(console, info)
        report.show(console, results)
    if options.out is not None:
        if options.redraw:
            store.write(options.out, store.read(options.redraw))
        console.print(f"wrote {options.out}", highlight=False)
    if options.picture is not None and results:
        picture.draw(results, options.picture)
        console.print(f"wrote {options.picture}", highlight=False)


def duration(seconds: float) -> str:
    """Seconds for people."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
