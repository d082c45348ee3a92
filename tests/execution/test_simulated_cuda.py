"""The simulated CUDA device finds what a real one would do wrong; see tests/helpers/simulated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from helpers.simulated import SimulatedCudaError, Simulation, simulated_cuda

GPU = torch.device("cuda", 0)


@pytest.fixture
def cuda() -> Iterator[Simulation]:
    with simulated_cuda(devices=2) as made:
        yield made


def captured(step: Any, share: Any = None) -> Any:
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=share):
        graph.result = step()
    return graph


def test_tensors_say_where_they_are_and_compute(cuda: Simulation) -> None:
    x = torch.arange(6, device=GPU).view(2, 3)
    assert (x.device, x.is_cuda, x[1].device) == (GPU, True, GPU)
    x[0, 1] = 7
    assert (x * 2).tolist() == [[0, 14, 4], [6, 8, 10]]
    assert x[1].data_ptr() == x.data_ptr() + 3 * 8
    assert torch.nn.Linear(3, 2).to(GPU)(x.float()).device == GPU


@pytest.mark.parametrize("other", ["cpu", "cuda:1"])
def test_operands_on_two_devices_are_refused(cuda: Simulation, other: str) -> None:
    with pytest.raises(SimulatedCudaError, match="tensors on"):
        torch.ones(2, device=GPU) + torch.ones(2, device=other)


def test_numpy_is_refused(cuda: Simulation) -> None:
    with pytest.raises(TypeError, match="numpy"):
        torch.ones(2, device=GPU).numpy()


def test_a_capture_is_played_back_and_does_not_run_what_it_records(cuda: Simulation) -> None:
    counter, step = torch.zeros(2, device=GPU), torch.tensor([1.0, 10.0], device=GPU)
    graph = captured(lambda: counter.add_(step) * 2)
    assert counter.tolist() == [0, 0]
    assert graph.result.isnan().all()
    graph.replay()
    step.fill_(3)
    graph.replay()
    assert counter.tolist() == [4, 13]
    assert graph.result.tolist() == [8, 26]


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: torch.tensor([1.0], device=GPU),
        lambda x: torch.ones(2).pin_memory().to(GPU, non_blocking=True),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.nonzero(),
        lambda x: torch.cuda.synchronize(),
        lambda x: x.to("cuda:1"),
    ],
)
def test_what_a_capture_must_not_do(cuda: Simulation, step: Any) -> None:
    x = torch.ones(2, device=GPU)
    step(x)
    with pytest.raises(SimulatedCudaError, match="capture"):
        captured(lambda: step(x))


def test_a_second_stream_must_be_forked_and_joined_in_a_capture(cuda: Simulation) -> None:
    x, other = torch.ones(2, device=GPU), torch.cuda.Stream(GPU)

    def forked(joins: bool) -> None:
        here = torch.cuda.current_stream(GPU)
        other.wait_stream(here)
        with torch.cuda.stream(other):
            x.add_(1)
        if joins:
            here.wait_stream(other)

    captured(lambda: forked(True)).replay()
    assert x.tolist() == [2, 2]
    with pytest.raises(SimulatedCudaError, match="not joined"):
        captured(lambda: forked(False))


def test_streams_that_touch_the_same_memory_must_wait(cuda: Simulation) -> None:
    x, other = torch.ones(2, device=GPU), torch.cuda.Stream(GPU)
    with torch.cuda.stream(other), pytest.raises(SimulatedCudaError, match="another stream"):
        x + 1
    other.wait_stream(torch.cuda.current_stream(GPU))
    with torch.cuda.stream(other):
        y = x + 1
    x + 1  # both read
    with pytest.raises(SimulatedCudaError, match="another stream"):
        x.add_(1)
    event = torch.cuda.Event()
    event.record(other)
    event.synchronize()
    assert (x.add_(1) + y).tolist() == [4, 4]


@pytest.mark.parametrize("keeps", [True, False])
def test_memory_that_another_stream_uses_must_not_be_given_away(cuda: Simulation, keeps: bool) -> None:
    x, other = torch.ones(2, device=GPU), torch.cuda.Stream(GPU)
    other.wait_stream(torch.cuda.current_stream(GPU))
    with torch.cuda.stream(other):
        x + 1
    if keeps:
        x.record_stream(other)
    del x
    if keeps:
        torch.zeros(2, device=GPU)
    else:
        with pytest.raises(SimulatedCudaError, match="freed"):
            torch.zeros(2, device=GPU)


def test_a_copy_to_the_host_arrives_when_it_was_waited_for(cuda: Simulation) -> None:
    x, host = torch.ones(2, device=GPU), torch.empty(2, pin_memory=True)
    host.copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    assert host.isnan().all()
    event.synchronize()
    assert host.tolist() == [1, 1]


def test_a_pinned_tensor_must_not_change_before_its_copy_is_done(cuda: Simulation) -> None:
    host = torch.ones(2).pin_memory()
    x = host.to(GPU, non_blocking=True)
    host.fill_(2)
    with pytest.raises(SimulatedCudaError, match="pinned"):
        x.tolist()


def test_graphs_of_one_pool_overwrite_what_the_others_gave(cuda: Simulation) -> None:
    x = torch.ones(2, device=GPU)
    first = captured(lambda: x + 1)
    second = captured(lambda: x + 2, first.pool())
    first.replay()
    kept = first.result.clone()
    second.replay()
    assert kept.tolist() == [2, 2]
    assert first.result.isnan().all()


def test_another_stream_is_not_waited_for_by_the_host(cuda: Simulation) -> None:
    other = torch.cuda.Stream(GPU)
    x, host = torch.ones(2, device=GPU), torch.empty(2, pin_memory=True)
    other.wait_stream(torch.cuda.current_stream(GPU))
    with torch.cuda.stream(other):
        host.copy_(x, non_blocking=True)
    x.sum().item()
    assert host.isnan().all()
    torch.cuda.synchronize()
    assert host.tolist() == [1, 1]
