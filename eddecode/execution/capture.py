"""Capturing a step as a CUDA graph: whether it can be, on which streams, in which memory, and what if it fails.

A step can be captured only if its course depends on shapes alone: no branch on a value, no result whose size depends on
one, nothing fetched by the host. That is checked by running the step once under a dispatch mode before CUDA is asked.
A capture that fails all the same must leave nothing behind: torch up to 2.11 counts it as under way for good, so that
its allocator gives nothing back, the next capture fails, and random numbers on the device are refused.

All graphs of a device that live at a time share one pool of memory. They never run at the same time, so that one may
use what another has freed. And they have to: the libraries that multiply matrices have a workspace per stream, which
lies in the pool of whichever graph was captured first, and torch 2.12 and 2.13 free it with any graph that was captured
on that stream (pytorch issue 193402). In a pool that lives on, such a workspace stays memory of graphs.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eddecode.errors import UnsupportedLayersError

WARM_UPS = 2  # runs before a capture: libraries choose their kernels and make their buffers

StepBody = Callable[[], Tensor]


class GraphReplay(Protocol):
    """A captured step. Called, it repeats the step on the same addresses and returns a copy of its result."""

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that the capture took."""
        ...

    def __call__(self) -> Tensor:
        """Repeat the step."""
        ...


GraphCapture = Callable[[StepBody], GraphReplay]


# Whether a step can be captured ------------------------------------------------------------------------------------


class CaptureCheck(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the block, operations whose course depends on the values of tensors are refused."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):
            with self:  # in inference mode composite operations arrive whole: check what they are made of
                return func.decompose(*args, **kwargs)
        if _goes_by_value(func) and not (func is torch.ops.aten.index.Tensor and not _has_boolean(args[1])):
            raise UnsupportedLayersError(f"a step that depends on the values of tensors ({func})")
        return func(*args, **kwargs)


@cache
def _is_composite(func: Any) -> bool:
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


@cache
def _goes_by_value(func: Any) -> bool:
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _has_boolean(indices: Any) -> bool:
    """Whether an index is boolean, so that the size of the result is not known beforehand."""
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def check_capturable(step: StepBody) -> Tensor:
    """Run a step once, and make sure that it can be captured.

    Raises:
        UnsupportedLayersError: it branches on values, or makes results whose size depends on them.
    """
    with CaptureCheck():  # type: ignore[no-untyped-call]
        return step()


# Capturing ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class GraphMemory:
    """What the graphs of a device share.

    Attributes:
        pool: torch's handle of the memory.
        stream: that they are captured on; memory that was freed on one stream is not used on another.
        graphs: those that live.
        last_stream: that one of them ran on last.
        in_use: held while a graph is launched and its result copied: other threads may launch others.
    """

    pool: Any
    stream: Any
    graphs: WeakSet[CudaGraph] = field(default_factory=WeakSet)
    last_stream: Any = None
    in_use: threading.Lock = field(default_factory=threading.Lock)


_memory: dict[torch.device, GraphMemory] = {}
_one_at_a_time = threading.RLock()


class CudaGraph:
    """A step captured by CUDA.

    Args:
        step: reads and writes tensors that stay where they are. What it returns stays where it is too, and is copied at
            once: other graphs, also those of other samplers, write there when they run.

    Raises:
        UnsupportedLayersError: the step cannot be captured.
        RuntimeError: CUDA refuses it, or there is no memory. Whatever the step raises is raised.
    """

    def __init__(self, step: StepBody) -> None:
        with _one_at_a_time:
            device = check_capturable(step).device
            # The outer stream context restores the stream even where a capture that fails does not.
            with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
                _warm_up(step, device)
                self._device, self._memory = device, _memory_of(device)
                torch.cuda.synchronize()
                torch.cuda.empty_cache()  # as the capture does: what is reserved from here on is the graph's
                before = torch.cuda.memory_reserved()
                self.graph = torch.cuda.CUDAGraph()
                self.logits = _captured(self.graph, step, self._memory, device)
                self.nbytes = torch.cuda.memory_reserved() - before
                self._memory.graphs.add(self)

    def __call__(self) -> Tensor:
        """Repeat the step on the current stream; does not wait for it. Returns a copy of the result."""
        here, memory = torch.cuda.current_stream(self._device), self._memory
        with memory.in_use:
            if memory.last_stream is not None and memory.last_stream != here:
                here.wait_stream(memory.last_stream)  # another graph may still be using the memory
            memory.last_stream = here
            self.graph.replay()
            return self.logits.clone()


def _warm_up(step: StepBody, device: torch.device) -> None:
    """Run a step on a stream of its own.

    What a library allocates for a stream on its first use there has to come from the graphs' memory, which it would not
    if this had used the stream that is captured.
    """
    warm, here = _warm_stream(device), torch.cuda.current_stream()
    warm.wait_stream(here)
    with torch.cuda.stream(warm):
        for _ in range(WARM_UPS):
            step()
    here.wait_stream(warm)


def _memory_of(device: torch.device) -> GraphMemory:
    """The memory of the graphs that live; a pool of which none is left cannot be used again."""
    found = _memory.get(device)
    if found is None:
        found = _memory[device] = GraphMemory(torch.cuda.graph_pool_handle(), _new_stream(device))
    elif not found.graphs:
        found.pool = torch.cuda.graph_pool_handle()
    return found


def _captured(graph: Any, step: StepBody, memory: GraphMemory, device: torch.device) -> Tensor:
    """Capture a step, and return its result; a failure leaves nothing behind.

    Raises what the step raised, not what ending its capture raised then: it may be memory that is short, or Ctrl-C.
    """
    raised: list[BaseException] = []
    try:
        # Other threads may use the device meanwhile.
        with (
            _no_collection(),
            torch.cuda.graph(
                graph, pool=memory.pool, stream=memory.stream, capture_error_mode="thread_local"
            ),
        ):
            try:
                result = step()
            except BaseException as error:
                raised.append(error)
                raise
    except BaseException as error:
        if error in raised:  # the capture itself has ended well
            raise
        _settle(device, memory.pool)
        raise (raised or [error])[0] from None
    return result


def _settle(device: torch.device, pool: Any) -> None:
    """Undo what a capture that CUDA refused leaves behind in torch up to 2.11; later ones do so themselves."""
    _memory.pop(device, None)  # nothing is added to a pool that may still count as one that is captured to
    library: Any = torch._C
    with suppress(RuntimeError):  # it is not recording: there is nothing to undo
        library._cuda_endAllocateToPool(device.index, pool)
        library._cuda_releasePool(device.index, pool)
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=_new_stream(device)):
        torch.zeros(1, device=device)  # a capture that succeeds tells the generator that none is under way


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected within the block: what it frees, such as another graph, a capture may not allow."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# Streams -----------------------------------------------------------------------------------------------------------


def _new_stream(device: torch.device) -> Any:
    make: Any = torch.cuda.Stream
    return make(device)


@cache
def _warm_stream(device: torch.device) -> Any:
    return _new_stream(device)


@cache
def side_stream(device: torch.device, index: int) -> Any:
    """A stream for what runs beside the stream in use; the same one for all steps, so that they share its memory."""
    return _new_stream(device)
