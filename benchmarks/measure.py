"""How it is measured: contenders in turn, round after round, in one process, with the bandwidth of the moment.

A shared machine drifts, by more than many gains are worth. So nothing is compared across rounds: in each round every
contender runs once, in an order that rotates, and a ratio is taken within the round. The bandwidth that the roofline
stands on is measured in each round too.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.contenders import Contender, NotAvailable, do
from benchmarks.tasks import Work

BUFFER_BYTES = {"cpu": 512 << 20, "cuda": 4 << 30}  # far more than any processor's last-level cache
READS = 5
PROBES = (2, 6)  # tokens of the two short runs an estimate is drawn from


class Bandwidth:
    """Reads one large buffer over and over, with as many threads as torch uses for the models."""

    def __init__(self, device: str) -> None:
        kind = torch.device(device).type
        self.buffer = torch.ones(BUFFER_BYTES[kind] // 4, device=device)
        self._vector = torch.ones(4096, device=device)

    def measure(self) -> float:
        """Bytes per second: the best of several reads, by a sum and by a matrix-vector product."""
        matrix = self.buffer.view(-1, len(self._vector))
        kernels: tuple[Callable[[], Tensor], ...] = (self.buffer.sum, lambda: matrix @ self._vector)
        return max(self.buffer.nbytes / self._seconds(read) for read in kernels for _ in range(READS))

    def _seconds(self, read: Callable[[], Tensor]) -> float:
        self._wait()
        start = time.perf_counter()
        read()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.buffer.is_cuda:
            torch.cuda.synchronize(self.buffer.device)


@dataclass
class Rounds:
    """What the interleaved runs gave: entry i of every list is of round i.

    Attributes:
        seconds: per contender.
        bandwidth: bytes per second.
        results: per contender, what its last run gave (token ids, or scores).
        missing: contender → why it did not run.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    bandwidth: list[float] = field(default_factory=list)
    results: dict[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """Per round, how many times as long the one took as the other."""
    return [a / b for a, b in zip(slower, faster, strict=True)]


def seconds_of(contender: Contender, work: Work) -> tuple[float, Sequence[Sequence[float]]]:
    """Time one run; garbage of the run before is collected first, and none is collected meanwhile."""
    with _no_collection():
        start = time.perf_counter()
        result = do(contender, work)  # a list of numbers: the device has finished when it is there
        return time.perf_counter() - start, result


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def estimate(contender: Contender, work: Work) -> float:
    """Seconds that a run will take, by short runs that warm up as well.

    Cost is taken to be linear in the tokens and in the α's; a growing cache makes it a little more than that.
    """
    do(contender, work.shorter(1, 1))
    few, more = (seconds_of(contender, work.shorter(tokens, 1))[0] for tokens in PROBES)
    per_token = max(more - few, 0.0) / (PROBES[1] - PROBES[0])
    one_alpha = few + per_token * max(work.new_tokens - PROBES[0], 0)
    if len(work.alphas) == 1:
        return one_alpha
    two = seconds_of(contender, work.shorter(PROBES[0], 2))[0]
    return one_alpha * (1 + max(two / few - 1, 0.0) * (len(work.alphas) - 1))


@dataclass
class Prepared:
    """Contenders that can do the work within the limit, and what a round of them is expected to take.

    Attributes:
        contenders: by name.
        seconds: expected, per contender.
        missing: contender → why it will not run.
    """

    contenders: dict[str, Contender]
    seconds: dict[str, float]
    missing: dict[str, str]


def prepare(contenders: Mapping[str, Contender], work: Work, limit: float) -> Prepared:
    """Warm up, estimate, and leave out what cannot do the work or would take longer than `limit` seconds a run."""
    prepared = Prepared({}, {}, {})
    for name, contender in contenders.items():
        try:
            expected = estimate(contender, work)
        except NotAvailable as why:
            prepared.missing[name] = f"not available: {why}"
            continue
        if expected > limit:
            prepared.missing[name] = (
                f"left out: about {expected:.0f} s a run, above the limit of {limit:.0f} s"
            )
            continue
        prepared.contenders[name] = contender
        prepared.seconds[name] = expected
    return prepared


def interleave(
    prepared: Prepared,
    work: Work,
    repeats: int,
    bandwidth: Bandwidth,
    advance: Callable[[float], None] = lambda _: None,
    first: int = 0,
) -> Rounds:
    """Run every contender once per round; `advance` is told the expected seconds of each finished run.

    Rounds are counted from `first`: who goes first depends on the number.
    """
    rounds = Rounds(missing=dict(prepared.missing))
    names = list(prepared.contenders)
    for index in range(first, first + repeats):
        rounds.bandwidth.append(bandwidth.measure())
        turn = index % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            seconds, rounds.results[name] = seconds_of(prepared.contenders[name], work)
            rounds.seconds.setdefault(name, []).append(seconds)
            advance(prepared.seconds[name])
    return rounds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
