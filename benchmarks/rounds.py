"""Interleaved measuring: every alternative runs once per round, and ratios are taken within a round.

The speed of a shared machine drifts by more than many gains are worth. So figures of different rounds are never
compared with each other: in each round every alternative runs once, in an order that rotates, and a ratio is the
quotient of two times of the same round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")
Clock = Callable[[], float]


def timed(run: Callable[[], Result], clock: Clock | None = None) -> tuple[float, Result]:
    """Seconds of one run, and its result. Garbage is collected before the run and not during it.

    Args:
        run: what is timed.
        clock: by default the wall clock (`time.perf_counter`).
    """
    clock = clock or time.perf_counter
    with _no_garbage_collection():
        start = clock()
        result = run()
        return clock() - start, result


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def interleave(
    timers: Mapping[str, Callable[[], float]],
    rounds: int,
    first: int = 0,
    before_round: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each alternative, one entry per round.

    Args:
        timers: name → a function that runs the alternative once and returns its seconds.
        rounds: how often each alternative runs.
        first: number of the first round: the number decides which alternative of a round runs first.
        before_round: called once at the start of each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    names = list(timers)
    for number in range(first, first + rounds):
        if before_round is not None:
            before_round()
        start = number % max(len(names), 1)
        for name in names[start:] + names[:start]:
            seconds[name].append(timers[name]())
    return seconds


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """Per round, the seconds of one alternative over those of another."""
    return [a / b for a, b in zip(slower, faster, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
