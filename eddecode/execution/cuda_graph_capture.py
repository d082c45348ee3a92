"""Capturing a step: what it asks of the device, recorded once, and asked again without any Python.

A CUDA graph repeats the same launches on the same addresses. So a step can be captured only if its course depends on
shapes alone: no branch on a value, no result whose size depends on one, nothing fetched by the host. Whether that is
so is found out by running the step once under a watch, before CUDA is asked: a capture that breaks off leaves the
process in a worse state than one that was never begun.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eddecode.errors import UnsupportedLayersError

WARM_UPS = 2  # runs before a capture: libraries choose their kernels and make their buffers

StepBody = Callable[[], Tensor]


class GraphReplay(Protocol):
    """A captured step. Called, it repeats the step on the same addresses and returns the same tensor, refilled."""

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that the capture took."""
        ...

    def __call__(self) -> Tensor:
        """Repeat the step."""
        ...


# What captures: a step, and a living replay whose memory it may share, to a replay.
GraphCapture = Callable[[StepBody, Any], GraphReplay]


class CaptureCheck(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, whatever depends on the values of tensors is refused."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:  # in inference mode operations arrive whole: look at what they are made of
                return func.decompose(*args, **kwargs)
        tags = func.tags
        by_value = torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags
        if by_value and not (func is torch.ops.aten.index.Tensor and not _selects(args[1])):
            raise UnsupportedLayersError(f"a step that depends on the values of tensors ({func})")
        return func(*args, **kwargs)


def _selects(indices: Any) -> bool:
    """Whether indices pick by true and false, so that the size of the result is not known beforehand."""
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def check_capturable(step: StepBody) -> Tensor:
    """Run a step once, and make sure that it can be captured.

    Raises:
        UnsupportedLayersError: it branches on values, or makes results whose size depends on them.
    """
    with CaptureCheck():  # type: ignore[no-untyped-call]
        return step()


class CudaGraph:
    """A step captured by CUDA.

    Args:
        step: reads and writes tensors that stay where they are; what it returns stays where it is too.
        beside: another graph, whose pool of memory this one shares. They must never run at the same time, and what one
            returned may be overwritten by the other: take a copy first.

    Raises:
        UnsupportedLayersError: the step cannot be captured.
        RuntimeError: CUDA refuses it, or there is no memory.
    """

    def __init__(self, step: StepBody, beside: CudaGraph | None = None) -> None:
        device = check_capturable(step).device
        warm, capturing = _streams(device)
        # The outer stream context puts the stream back even if a capture that breaks off does not.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            warm.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warm):
                for _ in range(WARM_UPS):
                    step()
            torch.cuda.current_stream().wait_stream(warm)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # as the capture does: what is reserved from here on is the graph's
            before = torch.cuda.memory_reserved()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                self.graph,
                pool=None if beside is None else beside.graph.pool(),
                stream=capturing,
                capture_error_mode="thread_local",  # what other threads do with the device is their affair
            ):
                self.logits = step()
            self.nbytes = torch.cuda.memory_reserved() - before

    def __call__(self) -> Tensor:
        """Repeat the step on the current stream; nothing is waited for."""
        self.graph.replay()
        return self.logits


@cache
def _streams(device: torch.device) -> tuple[Any, Any]:
    """The streams that steps are warmed up and captured on: two, the same ones for all graphs of a device.

    Graphs share memory only if they were captured on the same stream. And what a library allocates for a stream on its
    first use there has to come from the graph's own pool, which it would not if the warm-up had used that stream.
    """
    make: Any = torch.cuda.Stream
    return make(device), make(device)
