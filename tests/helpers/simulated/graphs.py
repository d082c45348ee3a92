"""Captured graphs of a simulated device: operations that are recorded, and played back on the same memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from helpers.simulated.streams import SIMULATIONS, Block, SimulatedCudaError, SimulatedStream, Uses
from helpers.simulated.tensors import DeviceTensor, inner, leaves


class Capture:
    """Operations that are recorded and not run."""

    def __init__(self, stream: SimulatedStream) -> None:
        self.stream, self.streams = stream, [stream]
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.uses: dict[Block, Uses] = {}
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # memory that was there, and its numbers
        self.born: weakref.WeakSet[Block] = weakref.WeakSet()

    def uses_of(self, block: Block) -> Uses:
        """How the captured operations use a block."""
        return self.uses.setdefault(block, Uses())

    def keep(self, tensors: Sequence[DeviceTensor]) -> None:
        """Remember numbers that an operation is about to write: it must not."""
        for tensor in tensors:
            storage = tensor.inner.untyped_storage()
            if tensor.block not in self.born and storage.data_ptr() not in self.before:
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                self.before[storage.data_ptr()] = whole, whole.clone()

    def finish(self) -> None:
        """Undo what was written, and let go of the streams."""
        for whole, numbers in self.before.values():
            whole.copy_(numbers)
        joined = dict(self.stream.clock)
        unjoined = [each for each in self.streams if joined.get(each, 0) < each.clock[each]]
        for each in self.streams:
            each.capture = None
        if unjoined:
            raise SimulatedCudaError("cudaErrorStreamCaptureUnjoined: a captured stream was not joined")


class SimulatedGraph:
    """A captured graph."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda = SIMULATIONS[-1]
        self._pool: Any = object()
        self.capture: Capture | None = None
        self.results: list[DeviceTensor] = []

    def pool(self) -> Any:
        """What other graphs may share."""
        return self._pool

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        """See `torch.cuda.CUDAGraph.capture_begin`."""
        stream = self.cuda.current_stream()
        if stream is self.cuda.default[stream.device.index]:
            raise SimulatedCudaError("a capture on the default stream")
        self._pool = self._pool if pool is None else pool
        self.capture = stream.capture = Capture(stream)

    def capture_end(self) -> None:
        """See `torch.cuda.CUDAGraph.capture_end`."""
        assert self.capture is not None
        self.capture.finish()
        self.cuda.graphs.add(self)
        for block in self.capture.born:
            block.uses = Uses()
        self.spoil()

    def replay(self) -> None:
        """Run what was recorded, as one launch on its device's current stream."""
        assert self.capture is not None
        for other in self.cuda.graphs:
            if other is not self and other._pool is self._pool:
                other.spoil()
        reads = [block for block, uses in self.capture.uses.items() if uses.reads]
        writes = [block for block, uses in self.capture.uses.items() if uses.writes]
        stream = self.cuda.current_stream(self.capture.stream.device)
        stream.launch(reads, writes, "a replayed graph")
        for func, args, kwargs, results in self.capture.operations:
            again = on_cpu(func, inner(args), inner(kwargs))
            for old, new in zip(results, [t for t in leaves(again) if isinstance(t, Tensor)], strict=True):
                own = old.inner if isinstance(old, DeviceTensor) else old
                if own.data_ptr() != new.data_ptr():
                    own.copy_(new)

    def spoil(self) -> None:
        """What is in its memory is nonsense: it did not run yet, or another graph did."""
        assert self.capture is not None
        for _, _, _, results in self.capture.operations:
            for each in results:
                if isinstance(each, DeviceTensor) and each.block in self.capture.born:
                    spoil(each.inner)


def spoil(numbers: Tensor) -> None:
    """Fill with nonsense."""
    with torch.inference_mode():
        if numbers.is_floating_point():
            numbers.fill_(float("nan"))
        elif numbers.dtype != torch.bool:
            numbers.fill_(-(2 ** (8 * numbers.element_size() - 2)) if numbers.dtype.is_signed else 255)


def on_cpu(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation gives, in a dtype that the CPU has for it."""
    if func is torch.ops.aten.histc.default and not args[0].is_floating_point():
        return func(args[0].double(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)
