"""What the stages share: the device, the sizes, the pair, and how time is measured."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.pairs import SIZES, BenchPair, Shape
from benchmarks.pairs import build as build_pair
from eddecode import Sampler
from eddecode.execution.factory import runner_for

TINY = Shape(hidden=16, feed_forward=24, layers=1, heads=2, vocabulary=40)
POSITIONS = 4096  # that the pair may read
CACHE_BYTES = 400 << 20  # far more than the cache of a GPU
REPEATS, ROUNDS = 20, 5


class StageError(Exception):
    """A stage that measured something, and did not find what was promised."""


class Figures(dict[str, Any]):
    """Name → figure. What a stage has found so far is kept if it is ended.

    Args:
        changed: is called with all figures, after each new one.
    """

    def __init__(self, changed: Callable[[dict[str, Any]], None] | None = None) -> None:
        super().__init__()
        self._changed = changed

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        if self._changed is not None:
            self._changed(self)

    def put(self, figures: Mapping[str, Any]) -> None:
        """Set several."""
        for name, value in figures.items():
            self[name] = value


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
        out: folder for what a stage writes.
        brief: measure a few figures only, of a dry run.
        bandwidth: bytes a second that the device reads, once that is measured.
    """

    device: torch.device
    dtype: torch.dtype
    dry: bool
    size: str
    out: Path
    brief: bool = False
    bandwidth: float | None = None
    _pair: BenchPair | None = None
    _sampler: Sampler | None = None

    @property
    def shape(self) -> Shape:
        """Of the pair."""
        return TINY if self.dry else SIZES[self.size]

    @property
    def pair(self) -> BenchPair:
        """The pair, built when it is first needed."""
        if self._pair is None:
            self._pair = self.built(self.shape)
        return self._pair

    def built(self, shape: Shape, variant: str = "full") -> BenchPair:
        """A pair of random weights on the device."""
        made = build_pair(shape, "float32" if self.dry else "bf16", variant, str(self.device))
        for model in (made.base, made.aligned):
            model.config.max_position_embeddings = POSITIONS
        return made

    @property
    def sampler(self) -> Sampler:
        """The pair's sampler as users get it."""
        if self._sampler is None:
            self._sampler = self.captured(Sampler(self.pair.model_pair()))
        return self._sampler

    def captured(self, sampler: Sampler) -> Sampler:
        """The same; in a dry run its steps are run again instead of being replayed."""
        if self.dry:
            sampler._runner = runner_for(sampler.pair, Rerun)
        return sampler

    def drop_pair(self) -> None:
        """Give back the memory of the pair; it is built again when it is needed."""
        self._pair = self._sampler = None
        self.release()

    def release(self) -> None:
        """Give memory that is not in use back to the device, so that a peak is that of what follows."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def share(self, nbytes: float, seconds: float) -> float | None:
        """What of the read bandwidth is used by reading so much in such a time; None if that was not measured."""
        return nbytes / self.bandwidth / seconds if self.bandwidth else None

    def few(self, count: int) -> int:
        """So many rows, or whatever a stage goes over; in a dry run two at most, under the same name."""
        return min(count, 2) if self.dry else count

    # Time -------------------------------------------------------------------------------------------------------------

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

    def device_ms(self, run: Callable[[], Any]) -> float:
        """Median milliseconds of a call on the device, as a replayed graph, of some rounds of replays."""
        return self.replay_ms(self.graphed(run))

    @torch.inference_mode()
    def replay_ms(self, replay: Callable[[], Any]) -> float:
        """As `device_ms`, of what is captured already."""
        if self.device.type != "cuda":
            return 1e3 * self.seconds(replay)
        replay()
        found: list[float] = []
        for _ in range(ROUNDS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            for _ in range(REPEATS):
                replay()
            end.record()
            torch.cuda.synchronize(self.device)
            found.append(float(start.elapsed_time(end)) / REPEATS)
        return statistics.median(found)

    def graphed(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """A replay of a call, captured after two runs; on a CPU the call itself."""
        if self.device.type != "cuda":
            return run
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
