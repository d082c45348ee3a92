"""eddecode against the alternatives: speed and peak memory of the tasks T1 to T4, and whether the tokens agree.

For each pair, peak memory is measured first, in a process per alternative. Then all alternatives are built and warmed
up, and the rounds run. Results are written after every round, so that an interrupted run keeps what it has; `--resume`
adds the rounds that are missing, and with `--budget` a long measurement can be taken in pieces.
"""

from __future__ import annotations

import argparse
import gc
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers.utils import logging

from benchmarks import memory, plot, results, tables
from benchmarks.choices import choices
from benchmarks.measure import Bandwidth, TimeBudget, interleave, timed
from benchmarks.pairs import BUNDLED, DTYPES, OWN, SIZES, VARIANTS, BenchPair, build, bundled_present
from benchmarks.registry import ALTERNATIVES, DEFAULTS, Alternative, do
from benchmarks.tasks import TASKS, NotAvailable, Work
from eddecode.errors import ConfigError, EddecodeError

MORE_TO_DO = 3  # exit code
PROBES = (2, 6)  # tokens of the two short runs that an estimate is made from

console = tables.make_console()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 2 for options that make no sense, 3 if the budget left rounds over."""
    options = parse(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; nothing was measured.")
        return 2
    try:
        if options.redraw:
            saved = results.read(options.redraw)
            tables.show_machine(console, saved["machine"])
            tables.show(console, saved["results"])
            publish(options, saved)
            return 0
        torch.set_num_threads(options.threads)
        gc.freeze()  # the libraries' objects need not be searched when garbage is collected before each run
        session = Session(options)
        tables.show_machine(console, session.machine)
        for size in options.sizes:
            for dtype in options.dtypes:
                for variant in options.pair:
                    measure_pair(session, size, dtype, variant)
        publish(options, session.saved)
    except EddecodeError as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False)
        return 2
    if session.left_over:
        console.print(f"left for the next time: {', '.join(session.left_over)}", highlight=False)
    return MORE_TO_DO if session.left_over else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; lists are separated by commas."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    cuda = torch.cuda.is_available()
    sizes = ["10M", "130M", *(["7B"] if cuda else []), *([BUNDLED] if bundled_present() else [])]

    def add(name: str, known: list[str], default: list[str], text: str) -> None:
        parser.add_argument(
            name,
            type=choices(known, lambda pair: BUNDLED in known and OWN in pair),
            default=default,
            help=f"{text}: {', '.join(known)} (default: {','.join(default)})",
        )

    add("--tasks", list(TASKS), list(TASKS), "tasks")
    add(
        "--sizes",
        [*SIZES, BUNDLED],
        sizes,
        "pairs, also BASE+ALIGNED, two folders of checkpoints; 7B needs a GPU",
    )
    add("--dtypes", list(DTYPES), list(DTYPES), "dtypes of the weights")
    add("--alternatives", list(ALTERNATIVES), DEFAULTS, "alternatives")
    add("--pair", list(VARIANTS), ["full"], "two checkpoints, or base + low rank")
    parser.add_argument("--rounds", type=int, help="default: 5; 2 with --quick")
    threads = torch.get_num_threads()
    parser.add_argument("--threads", type=int, default=threads, help="default: torch's choice")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: processor time of the process, which other programs lengthen less (default: wall)",
    )  # fmt: skip
    parser.add_argument("--device", default="cuda" if cuda else "cpu", help="default: a GPU if there is one")
    parser.add_argument(
        "--limit", type=float, default=300, help="leave out runs longer than this (default: 300 s)"
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument(
        "--quick", action="store_true", help="an eighth of the tokens, 2 rounds, no peak memory"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--resume", action="store_true", help="add the rounds that --out does not have yet")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), metavar="SECONDS",
        help="begin no round that would end later; exit code 3 if one is left over",
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the plot (.svg)")
    parser.add_argument(
        "--from", dest="redraw", type=Path, nargs="+", metavar="FILE", help="only show what --out has written"
    )
    options = parser.parse_args(arguments)
    if options.resume and options.out is None:
        parser.error("--resume needs --out FILE, the file that rounds are added to")
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.memory = options.memory and not options.quick
    return options


class Session:
    """One call of the command: its options, the results so far, and the time that is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.budget = TimeBudget(options.budget)
        self.machine = results.machine(options.device, options.threads)
        self.settings = {
            name: getattr(options, name)
            for name in ("rounds", "quick", "threads", "clock", "device", "limit")
        }
        self.records = results.resumed(options.out, self.settings) if options.resume else {}
        self.left_over: list[str] = []
        self.rounds = 0

    @property
    def saved(self) -> results.Record:
        """What is written to a file."""
        return {"machine": self.machine, "options": self.settings, "results": list(self.records.values())}

    def missing(self, size: str, dtype: str, variant: str) -> dict[str, int]:
        """Task → number of rounds that it lacks."""
        have = {
            task: results.rounds_of(self.records.get((size, dtype, variant, task)))
            for task in self.options.tasks
        }
        return {task: self.options.rounds - n for task, n in have.items() if n < self.options.rounds}

    def has_time(self, seconds: float) -> bool:
        """Whether a round of that length is within the budget; the first round always is, or nothing would be done."""
        return self.rounds == 0 or self.budget.allows(seconds)

    def add(self, record: results.Record) -> None:
        """Add rounds, and write all results."""
        place = results.key(record)
        old = self.records.get(place)
        self.records[place] = results.joined(old, record) if old else record
        self.rounds += 1
        if self.options.out is not None:
            results.write(self.options.out, self.saved)


def measure_pair(session: Session, size: str, dtype: str, variant: str) -> None:
    """The rounds that are missing of all tasks on one pair."""
    options, missing = session.options, session.missing(size, dtype, variant)
    if not missing:
        return
    name = f"{size} {dtype}, {variant} pair"
    if not session.has_time(0):
        session.left_over += [f"{task} {name}" for task in missing]
        return
    console.rule(name)
    try:
        peaks = measure_memory(options, size, dtype, variant)  # before this process holds the pair as well
        pair = build(size, dtype, variant, options.device)
    except ConfigError as error:
        console.print(f"left out: {error}", highlight=False)
        return
    built = {name: ALTERNATIVES[name].make(pair) for name in options.alternatives}
    with tables.progress(console) as bar:
        for task, count in missing.items():
            measure_task(session, pair, built, task, count, peaks.get(task, {}), bar)
    tables.show(
        console, [r for r in session.records.values() if results.key(r)[:3] == (size, dtype, variant)]
    )
    del built
    gc.collect()


def measure_task(
    session: Session,
    pair: BenchPair,
    built: dict[str, Alternative],
    task: str,
    count: int,
    peaks: dict[str, Any],
    bar: Progress,
) -> None:
    """Rounds of one task, until there are enough or the time is up; the bar counts expected seconds."""
    options = session.options
    work = TASKS[task].work(pair, quick=options.quick)
    old = session.records.get((pair.size, pair.dtype, pair.variant, task))
    name = f"{task} {pair.size} {pair.dtype}, {pair.variant} pair"
    if not session.has_time(0):
        session.left_over.append(name)
        return
    line = bar.add_task(f"{task}: warming up", total=None)
    chosen = {who: built[who] for who in (old["contenders"] if old else built)}
    # Rounds are added for the alternatives that the first ones were taken with, however long they take.
    plan = prepare(chosen, work, float("inf") if old else options.limit, whole=options.device != "cpu")
    plan.missing.update(old["missing"] if old else {})
    seconds = sum(plan.seconds.values())
    less = f" (quick: {work.new_tokens} tokens, {len(work.prompts)} rows per α)" if options.quick else ""
    bar.console.print(
        f"{task}: {TASKS[task].title}{less}: {count} rounds, about {format_duration(count * seconds)}",
        highlight=False,
    )
    bar.update(line, description=task, total=count * seconds)
    bandwidth = Bandwidth(options.device)
    for number in range(options.rounds - count, options.rounds):
        if not plan.alternatives or not session.has_time(seconds):
            session.left_over.append(name) if plan.alternatives else None
            break
        rounds = one_round(plan, work, bandwidth, number, options.clock)
        session.add(results.record(pair, TASKS[task], work, rounds, peaks, session.machine["commit"]))
        bar.advance(line, seconds)
    bar.remove_task(line)


@dataclass
class Plan:
    """Alternatives that can do the work within the limit, and the time that a run of each is expected to take.

    Attributes:
        alternatives: by name.
        seconds: expected, per alternative.
        first_seconds: of the first run, where it was the whole work.
        missing: alternative → why it will not run.
    """

    alternatives: dict[str, Alternative] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    first_seconds: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def prepare(alternatives: dict[str, Alternative], work: Work, limit: float, whole: bool = False) -> Plan:
    """Warm up, estimate, and leave out what cannot do the work or would take longer than `limit` seconds a run.

    With `whole`, the whole work is run to warm up, so that what is compiled or captured per shape is so afterwards.
    """
    plan = Plan()
    if whole:
        torch.compiler.reset()  # each task is compiled for its own shapes alone
    for name, alternative in alternatives.items():
        try:
            if whole:
                plan.first_seconds[name] = timed(lambda alternative=alternative: do(alternative, work))[0]  # type: ignore[misc]
            expected = estimate(alternative, work)
        except NotAvailable as why:
            plan.missing[name] = f"not available: {why}"
            continue
        if expected > limit:
            plan.missing[name] = f"left out: about {expected:.0f} s a run, above the limit of {limit:.0f} s"
            continue
        plan.alternatives[name], plan.seconds[name] = alternative, expected
    return plan


def estimate(alternative: Alternative, work: Work) -> float:
    """Seconds that a run will take, from short runs that warm up as well.

    The time is assumed to be linear in the tokens and in the α's; a growing cache makes it a little more.
    """

    def seconds(tokens: int, alphas: int) -> float:
        return timed(lambda: do(alternative, work.shorter(tokens, alphas)))[0]

    seconds(1, 1)
    few, more = (seconds(tokens, 1) for tokens in PROBES)
    per_token = max(more - few, 0.0) / (PROBES[1] - PROBES[0])
    one_alpha = few + per_token * max(work.new_tokens - PROBES[0], 0)
    if len(work.alphas) == 1:
        return one_alpha
    return one_alpha * (1 + max(seconds(PROBES[0], 2) / few - 1, 0.0) * (len(work.alphas) - 1))


def one_round(
    plan: Plan, work: Work, bandwidth: Bandwidth, number: int, clock: str = "wall"
) -> results.Rounds:
    """Run every alternative once, in the order of that round; `clock` as in the options."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    rounds = results.Rounds(first_seconds=dict(plan.first_seconds), missing=dict(plan.missing))

    def timer(name: str) -> float:
        seconds, rounds.results[name] = timed(lambda: do(plan.alternatives[name], work), now)
        return seconds

    timers = {name: lambda name=name: timer(name) for name in plan.alternatives}
    rounds.seconds = interleave(timers, 1, number, lambda: rounds.bandwidth.append(bandwidth.measure()))
    return rounds


def measure_memory(
    options: argparse.Namespace, size: str, dtype: str, variant: str
) -> dict[str, dict[str, Any]]:
    """Task → alternative → the figures of `memory.measure`; empty if memory is not to be measured."""
    if not options.memory or (size == BUNDLED and not bundled_present()):
        return {}
    peaks: dict[str, dict[str, Any]] = {task: {} for task in options.tasks}
    with tables.progress(console) as bar:
        line = bar.add_task("peak memory", total=len(peaks) * len(options.alternatives))
        for task, found in peaks.items():
            for name in options.alternatives:
                found[name] = memory.measure(
                    memory.Probe(
                        name, task, size, dtype, variant, options.device, options.threads, options.quick
                    )
                )
                bar.advance(line)
    return peaks


def publish(options: argparse.Namespace, saved: results.Record) -> None:
    """Write the results and the plot to the files that the options name."""
    if options.out is not None:
        results.write(options.out, saved)
        console.print(f"wrote {options.out}", highlight=False)
    if options.picture is not None and saved["results"]:
        plot.draw_ratios(saved["results"], options.picture)
        console.print(f"wrote {options.picture}", highlight=False)


def format_duration(seconds: float) -> str:
    """Seconds, or minutes where there are many."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
