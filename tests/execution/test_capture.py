"""What surrounds a capture: memory that graphs share, streams, and captures that fail; on a stand-in for torch.cuda."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eddecode.execution import capture as module
from eddecode.execution.capture import CudaGraph
from eddecode.execution.pair_step import PairStep


class Stream:
    made = 0

    def __init__(self, device: Any = None) -> None:
        Stream.made += 1
        self.name = f"stream {Stream.made}"

    def wait_stream(self, other: Stream) -> None:
        FakeCuda.log.append((self.name, "waits for", other.name))


class FakeCuda:
    """Records what torch.cuda is asked for; a capture that was invalidated ends with an error, as in torch 2.11."""

    log: list[Any]
    current: Any
    recording: list[Any]  # pools that the allocator captures to
    released: list[Any]
    pools: int
    replays: int
    invalid = False

    @classmethod
    def reset(cls) -> None:
        cls.log, cls.recording, cls.released = [], [], []
        cls.pools = cls.replays = 0
        cls.current, cls.invalid = Stream(), False

    class Graph:
        def replay(self) -> None:
            FakeCuda.replays += 1

    class Capture:
        def __init__(
            self, graph: Any, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
        ) -> None:
            self.graph, self.pool, self.stream = graph, pool, stream

        def __enter__(self) -> None:
            assert not FakeCuda.recording, "a capture is counted as under way"
            graph, before = self.graph, FakeCuda.current
            graph.pool, graph.stream, graph.before = self.pool, self.stream, before
            FakeCuda.recording.append(self.pool)
            FakeCuda.current = self.stream
            FakeCuda.log.append(("captured on", self.stream.name, "to", self.pool))

        def __exit__(self, *_: Any) -> None:
            if FakeCuda.invalid:  # nothing is put back: neither the allocator nor the stream
                FakeCuda.invalid = False
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            FakeCuda.recording.remove(self.pool)
            FakeCuda.current = self.graph.before

    class Use:
        def __init__(self, stream: Stream) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            self.before, FakeCuda.current = FakeCuda.current, self.stream

        def __exit__(self, *_: Any) -> None:
            FakeCuda.current = self.before

    @staticmethod
    def handle() -> tuple[int, int]:
        FakeCuda.pools += 1
        return (0, FakeCuda.pools)

    @staticmethod
    def end(index: Any, pool: Any) -> None:
        if pool not in FakeCuda.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        FakeCuda.recording.remove(pool)


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeCuda]]:
    FakeCuda.reset()
    for name, value in {
        "Stream": Stream,
        "stream": FakeCuda.Use,
        "current_stream": lambda device=None: FakeCuda.current,
        "device": lambda device: nullcontext(),
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "memory_reserved": lambda: 0,
        "CUDAGraph": FakeCuda.Graph,
        "graph": FakeCuda.Capture,
        "graph_pool_handle": FakeCuda.handle,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", FakeCuda.end, raising=False)
    monkeypatch.setattr(
        torch._C, "_cuda_releasePool", lambda index, pool: FakeCuda.released.append(pool), raising=False
    )
    monkeypatch.setattr(module, "_memory", {})
    module._warm_stream.cache_clear()
    yield FakeCuda
    module._warm_stream.cache_clear()


def ones() -> torch.Tensor:
    return torch.ones(2)


def test_graphs_that_live_share_memory_and_the_stream_that_they_are_captured_on(cuda: Any) -> None:
    first, second = CudaGraph(ones), CudaGraph(ones)
    assert first.graph.pool == second.graph.pool == (0, 1)
    assert first.graph.stream is second.graph.stream
    del first
    assert CudaGraph(ones).graph.pool == (0, 1)  # while one is left, what was freed stays memory of graphs
    del second
    assert CudaGraph(ones).graph.pool == (0, 2)  # torch refuses a pool of which no graph is left


def test_the_warm_up_runs_on_another_stream_than_the_capture(cuda: Any) -> None:
    before, used = cuda.current, []
    graph = CudaGraph(lambda: used.append(cuda.current) or ones())
    check, *warm, captured = used
    assert check is before
    assert len(warm) == module.WARM_UPS
    assert warm[0] not in (before, captured)
    assert captured is graph.graph.stream
    assert cuda.log[:2] == [
        (warm[0].name, "waits for", before.name), (before.name, "waits for", warm[0].name)
    ]  # fmt: skip
    assert cuda.current is before


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), Interrupted(), ValueError("of a model")]
)
@pytest.mark.parametrize("invalid", [False, True])
def test_a_capture_that_fails_leaves_nothing_behind(error: BaseException, invalid: bool, cuda: Any) -> None:
    """What the step raised is raised, in the place of what ending the capture raises; the next capture succeeds."""
    living, runs, before = CudaGraph(ones), [], cuda.current

    def step() -> torch.Tensor:
        runs.append(gc.isenabled())
        if len(runs) > 1 + module.WARM_UPS:
            cuda.invalid = invalid
            raise error
        return ones()

    with pytest.raises(type(error)) as raised:
        CudaGraph(step)
    assert raised.value is error
    assert runs == [True] * (1 + module.WARM_UPS) + [False]  # garbage is not collected in a capture
    assert gc.isenabled()
    assert cuda.recording == []
    assert cuda.current is before
    assert cuda.released == ([living.graph.pool] if invalid else [])
    after = CudaGraph(ones)
    assert (after.graph.pool == living.graph.pool) is not invalid
    assert (after.graph.stream is living.graph.stream) is not invalid


def test_what_cuda_refuses_is_raised_and_a_capture_that_succeeds_follows(cuda: Any) -> None:
    """The generator of random numbers counts a capture as under way until one ends well (torch 2.11)."""
    runs = []

    def step() -> torch.Tensor:
        runs.append(1)
        cuda.invalid = len(runs) > 1 + module.WARM_UPS
        return ones()

    with pytest.raises(RuntimeError, match="operation failed due to a previous error during capture"):
        CudaGraph(step)
    captures = [entry for entry in cuda.log if entry[0] == "captured on"]
    assert len(captures) == 2
    assert captures[0][1] != captures[1][1]  # on a stream that no capture was refused on
    assert cuda.recording == []


def test_a_graph_waits_for_one_of_the_same_memory_on_another_stream(cuda: Any) -> None:
    first, second, here, there = CudaGraph(ones), CudaGraph(ones), cuda.current, Stream()
    first()
    cuda.log.clear()
    second()
    assert cuda.log == []
    with cuda.Use(there):
        first()
    assert cuda.log == [(there.name, "waits for", here.name)]
    assert cuda.replays == 3


def test_a_result_is_a_copy_also_where_two_threads_launch_graphs(
    cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two samplers, each in a thread of its own: the graph of one writes where the result of the other lies."""
    shared, numbers = torch.zeros(1), iter((1.0, 2.0))
    graphs = {}
    for number in numbers:
        made = CudaGraph(lambda: shared)
        graphs[number] = made

        def replay(number: float = number) -> None:
            shared.fill_(number)
            time.sleep(0.002)  # another thread runs

        monkeypatch.setattr(made.graph, "replay", replay, raising=False)

    def run(number: float) -> list[float]:
        found = [graphs[number]() for _ in range(10)]
        return [float(each) for each in found]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, graphs)) == [[1.0] * 10, [2.0] * 10]


@pytest.mark.parametrize("fails", [False, True])
def test_streams_of_a_step_come_back_also_where_a_model_fails(fails: bool, cuda: Any) -> None:
    """A capture ends well only if they do, and one that does not leaves torch in a bad state."""
    step, other = PairStep.__new__(PairStep), Stream()
    step._streams = [other]
    step.rows = SimpleNamespace(active=torch.ones(1))  # type: ignore[assignment]
    with pytest.raises(torch.OutOfMemoryError) if fails else nullcontext(), step._forked():
        if fails:
            raise torch.OutOfMemoryError("no room")
    here = cuda.current
    assert cuda.log == [(other.name, "waits for", here.name), (here.name, "waits for", other.name)]


def test_steps_use_the_same_streams_beside_the_one_in_use() -> None:
    device = torch.device("cpu")
    module.side_stream.cache_clear()
    assert module.side_stream(device, 0) is module.side_stream(device, 0)
    assert module.side_stream(device, 0) is not module.side_stream(device, 1)
    module.side_stream.cache_clear()
