"""Interleaved measuring: every alternative runs once per round, and ratios are taken within a round.

The speed of a shared machine drifts by more than many gains are worth. So figures of different rounds are never
compared with each other: in each round every alternative runs once, in an order that rotates, and a ratio is the
quotient of two times of the same round. The memory bandwidth, which the roofline is computed from, is measured in each
round too.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

BUFFER_BYTES = {"cpu": 512 << 20, "cuda": 4 << 30}  # far more than any processor's last-level cache
READS = 5
Result = TypeVar("Result")
Clock = Callable[[], float]


def timed(run: Callable[[], Result], clock: Clock | None = None) -> tuple[float, Result]:
    """Seconds of one run, and its result. Garbage is collected before the run and not during it.

    Args:
        run: what is timed; it must return only when the device has finished.
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


class TimeBudget:
    """The time that a command may take, so that a long measurement can be taken in pieces.

    Args:
        seconds: begin nothing that would end later.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    def allows(self, seconds: float) -> bool:
        """Whether something that takes so long would end in time."""
        return time.perf_counter() + seconds <= self._end


class Bandwidth:
    """Reads one large buffer repeatedly, with as many threads as torch uses for the models."""

    def __init__(self, device: str) -> None:
        import torch

        self.buffer = torch.ones(BUFFER_BYTES[torch.device(device).type] // 4, device=device)
        self._vector = torch.ones(4096, device=device)

    def measure(self) -> float:
        """Bytes per second: the best of several reads, by a sum and by a matrix-vector product."""
        matrix = self.buffer.view(-1, len(self._vector))
        kernels: tuple[Callable[[], Tensor], ...] = (self.buffer.sum, lambda: matrix @ self._vector)
        return max(self.buffer.nbytes / self._seconds(read) for read in kernels for _ in range(READS))

    def _seconds(self, read: Callable[[], Tensor]) -> float:
        synchronize(self.buffer.device.type)
        start = time.perf_counter()
        read()
        synchronize(self.buffer.device.type)
        return time.perf_counter() - start


def synchronize(device: str) -> None:
    """Wait until a GPU has finished; nothing on a CPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
