"""Running the findings: every finding on its seeds, in one process or several, and what comes of it as data.

Nothing is decided here: a finding says whether its criterion is met, and a claim counts as reproduced if it is on every
seed. Models and measurements are kept by the workshop, so a rerun reads them back and a killed run goes on.
"""

from __future__ import annotations

import json
import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from eddecode.errors import ConfigError
from eddecode.experiments.findings import alignment_methods as methods
from eddecode.experiments.findings import (
    baselines,
    depth,
    ensembles,
    reversal,
    scaling,
    strength,
    theory_decoding,
    theory_exact,
    theory_levels,
    theory_trained,
)
from eddecode.experiments.findings import withheld_base as withheld
from eddecode.experiments.findings.finding import Finding, Outcome
from eddecode.experiments.findings.harness import Bench, Scale
from eddecode.experiments.model_cache import Report, Workshop
from eddecode.utils.files import atomic_write

FINDINGS: tuple[Finding, ...] = (
    reversal.REVERSAL,
    reversal.CONTROL,
    reversal.ALPHA,
    strength.STRENGTH,
    strength.EXTREME,
    baselines.BASELINES,
    theory_exact.IDENTITY_FINDING,
    theory_exact.TOKEN_FINDING,
    theory_trained.TRAINED,
    theory_levels.LEVELS,
    theory_decoding.DECODING,
    methods.METHODS,
    withheld.WITHHELD,
    depth.DEPTH_OF_METHODS,
    depth.LIMITED,
    ensembles.ENSEMBLE,
    scaling.TRANSFER,
    scaling.SIZES,
)
EARLY = (scaling.SIZES.name,)
"""Begun first: it trains other bases than the rest, the largest of all among them."""
SEED_STEP = 1_000_000
"""Seeds of repetitions lie apart, so that those that a finding derives from its own never meet."""


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        out: folder for everything.
        scale: how much is measured.
        seeds: repetitions of the headline findings; the others are measured on the first.
        only: names of the findings wanted; empty means all.
        jobs: processes.
    """

    out: Path
    scale: Scale
    seeds: int = 3
    only: tuple[str, ...] = ()
    jobs: int = 1

    @property
    def findings(self) -> list[Finding]:
        """Those wanted, in order.

        Raises:
            ConfigError: a name is not a finding's.
        """
        known = {finding.name: finding for finding in FINDINGS}
        for name in self.only:
            if name not in known:
                raise ConfigError(f"no finding is called {name!r}; expected one of {', '.join(known)}")
        return [finding for finding in FINDINGS if not self.only or finding.name in self.only]

    @property
    def tasks(self) -> list[tuple[str, int]]:
        """(finding, repetition), the first repetition of everything first, in an order that keeps processes from
        waiting for one another's base: `EARLY` first, and then each headline finding on all of its other seeds."""
        first = sorted(self.findings, key=lambda finding: finding.name not in EARLY)
        again = [(f.name, k) for f in self.findings if f.headline for k in range(1, self.seeds)]
        return [(finding.name, 0) for finding in first] + again


@dataclass(frozen=True)
class Result:
    """A finding with its outcomes, one per seed."""

    finding: Finding
    outcomes: list[Outcome]

    @property
    def reproduced(self) -> bool:
        """Whether the criterion is met on every seed."""
        return all(outcome.holds for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """As findings.json has it; what is not finite becomes null."""
        return {
            "name": self.finding.name,
            "claim": self.finding.claim,
            "criterion": self.finding.criterion,
            "reproduced": self.reproduced,
            "figures": {
                "said": [outcome.said for outcome in self.outcomes],
                "holds": [outcome.holds for outcome in self.outcomes],
                "seeds": [_plain(outcome.figures) for outcome in self.outcomes],
            },
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measure(plan: Plan, task: tuple[str, int], report: Report | None = None) -> Outcome:
    """One finding on one seed."""
    name, repetition = task
    finding = next(finding for finding in FINDINGS if finding.name == name)
    return finding.measure(Bench(Workshop(plan.out, report), plan.scale, SEED_STEP * repetition))


def run(plan: Plan, console: Console | None = None) -> list[Result]:
    """Measure everything that is planned, and write findings.json.

    Args:
        plan: what to run.
        console: where the progress is drawn; None draws none.
    """
    tasks, outcomes = plan.tasks, dict[tuple[str, int], Outcome]()
    with _bars(console, len(tasks)) as (report, done):
        for task, outcome in _outcomes(plan, tasks, report):
            outcomes[task] = outcome
            done(task[0])
    results = [
        Result(f, [outcomes[f.name, k] for k in range(plan.seeds) if (f.name, k) in outcomes])
        for f in plan.findings
    ]
    data = {"findings": [result.to_dict() for result in results]}
    atomic_write(plan.out / "findings.json", json.dumps(data, indent=1) + "\n")
    return results


def _outcomes(
    plan: Plan, tasks: Sequence[tuple[str, int]], report: Report
) -> Iterator[tuple[tuple[str, int], Outcome]]:
    if plan.jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # what is sampled must not depend on the number of cores
        try:
            for task in tasks:
                yield task, measure(plan, task, report)
        finally:
            torch.set_num_threads(threads)
        return
    context = get_context("spawn")
    with context.Manager() as manager:
        told: Any = manager.Queue()
        with _listening(told, report), ProcessPoolExecutor(plan.jobs, mp_context=context) as pool:
            waiting = {task: pool.submit(_measure_apart, plan, task, told) for task in tasks}
            for task, future in waiting.items():
                yield task, future.result()


def _measure_apart(plan: Plan, task: tuple[str, int], told: Any) -> Outcome:
    """`measure` in a process of its own, which tells of its progress through a queue."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)

    def report(what: str, done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            told.put((f"{task[0]}: {what}", done, total))

    return measure(plan, task, report)


@contextmanager
def _listening(told: Any, report: Report) -> Iterator[None]:
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            try:
                report(*told.get(timeout=0.2))
            except (queue.Empty, EOFError, OSError):
                continue

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()


@contextmanager
def _bars(console: Console | None, total: int) -> Iterator[tuple[Report, Callable[[str], None]]]:
    columns = (TextColumn("{task.description:42}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console or Console(quiet=True), disable=console is None
    ) as progress:
        whole = progress.add_task("findings", total=total)
        current = progress.add_task("", total=1)

        def report(what: str, done: int, steps: int) -> None:
            progress.update(current, description=what, completed=done, total=steps)

        def done(name: str) -> None:
            progress.update(whole, description=f"findings (last: {name})", advance=1)

        yield report, done
