"""Runs the experiments on their seeds, in one process or several, and collects the results.

Nothing is decided here: an experiment evaluates its own criterion, and a claim counts as reproduced if its criterion
is met on every seed. The model cache keeps models and measurements, so a rerun reads them from disk and a run that was
killed continues.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from eddecode.errors import ConfigError
from eddecode.experiments.findings import (
    alignment_methods,
    baselines,
    depth,
    ensembles,
    limited_access,
    marginal_risk,
    reversal,
    reward_ranking,
    scaling,
    strength,
    strength_trend,
    theory_decoding,
    theory_exact,
    theory_levels,
    theory_trained,
    training_baselines,
    training_cost,
    withheld_base,
)
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ReplicatedResult
from eddecode.experiments.findings.harness import ExperimentHarness
from eddecode.experiments.findings.record import RunRecord, package_versions, provenance
from eddecode.experiments.findings.size import ExperimentSize
from eddecode.experiments.model_cache import ModelCache, ProgressCallback
from eddecode.experiments.training import single_thread

EXPERIMENTS: tuple[Experiment, ...] = (
    reversal.REVERSAL,
    reversal.CONTROL,
    reversal.ALPHA,
    strength.STRENGTH,
    strength.EXTREME,
    strength.EXTREME_FIXED,
    baselines.BASELINES,
    training_baselines.PREFERENCE,
    training_baselines.ORACLE,
    theory_exact.IDENTITY,
    theory_exact.TOKEN_LEVEL,
    theory_trained.TRAINED,
    theory_levels.LEVELS,
    theory_decoding.DECODING,
    reward_ranking.REWARD,
    alignment_methods.METHODS,
    withheld_base.WITHHELD,
    depth.DEPTH_OF_METHODS,
    depth.LIMITED,
    ensembles.ENSEMBLE,
    scaling.TRANSFER,
    scaling.SIZES,
    marginal_risk.MARGINAL,
    strength_trend.TREND,
    training_cost.COST,
    limited_access.ACCESS,
    ensembles.PAIRS,
)
STARTED_FIRST = (scaling.SIZES.name, withheld_base.WITHHELD.name)
"""They train other bases than the rest, which take longest: side by side, no other process waits for these."""
SEED_STEP = 1_000_000
"""Distance between the seeds of two repetitions, so that seeds which an experiment derives from its own never meet."""

Task = tuple[str, int]
"""Name of an experiment, and the repetition."""


@dataclass(frozen=True)
class ExperimentPlan:
    """What is to be run.

    Attributes:
        out: folder for models, measurements and pages.
        size: how much is measured.
        seeds: repetitions of the headline experiments; the others are measured on the first seed.
        only: names of the experiments to run; empty means all.
        jobs: number of processes.
    """

    out: Path
    size: ExperimentSize
    seeds: int = 3
    only: tuple[str, ...] = ()
    jobs: int = 1

    @property
    def experiments(self) -> list[Experiment]:
        """The experiments to run, in the order of the page.

        Raises:
            ConfigError: `only` holds a name that no experiment has.
        """
        known = {experiment.name for experiment in EXPERIMENTS}
        for name in self.only:
            if name not in known:
                names = ", ".join(experiment.name for experiment in EXPERIMENTS)
                raise ConfigError(f"no finding is called {name!r}; expected one of {names}")
        return [experiment for experiment in EXPERIMENTS if not self.only or experiment.name in self.only]

    @property
    def tasks(self) -> list[Task]:
        """First repetitions of all experiments, `STARTED_FIRST` in front, then the other seeds of each headline one.

        In this order processes rarely wait for a base model that another one trains.
        """
        first = sorted(self.experiments, key=lambda experiment: experiment.name not in STARTED_FIRST)
        again = [(e.name, k) for e in self.experiments if e.headline for k in range(1, self.seeds)]
        return [(experiment.name, 0) for experiment in first] + again


def run_task(plan: ExperimentPlan, task: Task, report: ProgressCallback | None = None) -> ExperimentResult:
    """One experiment on one seed."""
    name, repetition = task
    experiment = next(experiment for experiment in EXPERIMENTS if experiment.name == name)
    return experiment.measure(
        ExperimentHarness(ModelCache(plan.out, report), plan.size, SEED_STEP * repetition)
    )


def run_experiments(
    plan: ExperimentPlan,
    command: str = "",
    console: Console | None = None,
    earlier: RunRecord | None = None,
) -> RunRecord:
    """Measure everything that is planned, and write findings.json.

    Args:
        plan: what to run.
        command: the command of the run, for the record.
        console: where progress is drawn; None draws nothing.
        earlier: a run whose results are kept for the experiments that are not planned.
    """
    tasks, results = plan.tasks, dict[Task, ExperimentResult]()
    with _progress_bars(console, len(tasks)) as (report, done):
        for task, result in _results(plan, tasks, report):
            results[task] = result
            done(task[0])
    seconds = ModelCache(plan.out).all_training_seconds()
    measured = provenance()
    kept = {r.experiment.name: r for r in (earlier.results if earlier else [])}
    planned = {
        e.name: ReplicatedResult(
            e, [results[e.name, k] for k in range(plan.seeds) if (e.name, k) in results], measured
        )
        for e in plan.experiments
    }
    together = {**kept, **planned}
    record = RunRecord(
        command=command,
        seeds=max(plan.seeds, earlier.seeds if earlier else 0),
        size=asdict(plan.size),
        models=len(seconds),
        core_seconds=sum(seconds),
        packages=package_versions(),
        results=[together[e.name] for e in EXPERIMENTS if e.name in together],
        missing=[e.name for e in EXPERIMENTS if e.name not in together],
    )
    record.write(plan.out / "findings.json")
    return record


def _results(
    plan: ExperimentPlan, tasks: Sequence[Task], report: ProgressCallback
) -> Iterator[tuple[Task, ExperimentResult]]:
    if plan.jobs == 1:
        with single_thread():  # sums, and with them samples, must not depend on the number of cores
            for task in tasks:
                yield task, run_task(plan, task, report)
        return
    context = get_context("spawn")
    with context.Manager() as manager:
        messages: Any = manager.Queue()
        with _forwarding(messages, report), ProcessPoolExecutor(plan.jobs, mp_context=context) as pool:
            futures = {task: pool.submit(_run_in_process, plan, task, messages) for task in tasks}
            for task, future in futures.items():
                yield task, future.result()


def _run_in_process(plan: ExperimentPlan, task: Task, messages: Any) -> ExperimentResult:
    """`run_task` in a process of its own, which sends its progress through a queue."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)

    def report(what: str, done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            messages.put((f"{task[0]}: {what}", done, total))

    return run_task(plan, task, report)


@contextmanager
def _forwarding(messages: Any, report: ProgressCallback) -> Iterator[None]:
    """Passes progress messages of other processes on to `report`."""
    stopped = threading.Event()

    def forward() -> None:
        while not stopped.is_set():
            try:
                report(*messages.get(timeout=0.2))
            except (queue.Empty, EOFError, OSError):
                continue

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@contextmanager
def _progress_bars(
    console: Console | None, total: int
) -> Iterator[tuple[ProgressCallback, Callable[[str], None]]]:
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
