"""What the stages share: the device, the sizes, the pair, and how time is measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.pairs import SIZES, BenchPair, Shape
from eddecode import Sampler
from eddecode.execution.factory import runner_for

TINY = Shape(hidden=16, feed_forward=24, layers=1, heads=2, vocabulary=40)


class Rerun:
    """A step that is run again instead of being replayed, for a dry run."""

    nbytes = 0

    def __init__(self, step: Callable[[], torch.Tensor]) -> None:
        self.step = step

    def __call__(self) -> torch.Tensor:
        """Run the step."""
        return self.step()


@dataclass
class Context:
    """See the module.

    Attributes:
        device, dtype: of the models.
        dry: tiny shapes on a CPU.
        size: of the pair.
        bandwidth: bytes a second that the device reads, once that is measured.
        pair, sampler: once they are made.
    """

    device: torch.device
    dtype: torch.dtype
    dry: bool
    size: str
    bandwidth: float | None = None
    pair: BenchPair | None = None
    _sampler: Sampler | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        """Of the pair."""
        return TINY if self.dry else SIZES[self.size]

    @property
    def bench_pair(self) -> BenchPair:
        """The pair; an error if the stage that builds it failed."""
        if self.pair is None:
            raise RuntimeError("the pair was not built: see the stage `build`")
        return self.pair

    @property
    def sampler(self) -> Sampler:
        """The pair's sampler as users get it; in a dry run its steps are run again instead of being replayed."""
        if self._sampler is None:
            made = Sampler(self.bench_pair.model_pair())
            if self.dry:
                made._runner = runner_for(made.pair, Rerun)
            self._sampler = made
        return self._sampler

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], Any], rounds: int = 3) -> float:
        """Median seconds of a call, by the clock."""
        found = []
        for _ in range(1 if self.dry else rounds):
            self.synchronize()
            start = time.perf_counter()
            run()
            self.synchronize()
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    def device_ms(self, run: Callable[[], Any], repeats: int = 20) -> float:
        """Median milliseconds on the device, as a replayed graph."""
        if self.device.type != "cuda":
            return 1e3 * self.seconds(run)
        replay = self._graphed(run)
        replay()
        found: list[float] = []
        for _ in range(3):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            for _ in range(repeats):
                replay()
            end.record()
            torch.cuda.synchronize(self.device)
            found.append(float(start.elapsed_time(end)) / repeats)
        return statistics.median(found)

    def _graphed(self, run: Callable[[], Any]) -> Callable[[], Any]:
        stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay
