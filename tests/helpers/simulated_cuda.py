"""A CUDA device that is not there: tensors say that they are on it, and live on the CPU.

Within `simulated_cuda()` torch finds one or several GPUs. What runs on them runs on the CPU, the Triton kernels in Triton's
interpreter (TRITON_INTERPRET=1, float32), but a mistake that shows on CUDA only is an error: operands on different devices,
a host that waits or copies in a capture, a result that is read before its copy has arrived, a launch beside another stream
that uses the same memory, a stream that a capture does not join, memory of a pool that another graph has overwritten. A
capture does not run what it records: after it, what it would have written is as before, and its results hold nonsense.

What it cannot show: whether a compiler or a driver accepts a kernel, what it computes in other dtypes, and how long it takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eddecode.execution import cuda_graph
from eddecode_kernels import layers_triton
from eddecode_kernels.jit import find_compiler
from helpers.simulated_streams import (
    SIMULATIONS,
    Block,
    Clock,
    SimulatedCudaError,
    SimulatedEvent,
    SimulatedStream,
    StreamStack,
    Uses,
    merge,
)

CPU = torch.device("cpu")
MEMORY = 80 << 30  # bytes of a device
COPIES = ("aten::copy_", "aten::_to_copy", "aten::_copy_from")
TAKES_HOST_INDICES = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
WAITS = ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero", "aten::masked_select")


class DeviceTensor(torch.Tensor):
    """A tensor that says that it is on a CUDA device.

    Attributes:
        inner: its numbers, on the CPU.
        block: the memory that it is a view of.
    """

    inner: Tensor
    block: Block

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device, block: Block) -> DeviceTensor:
        with torch.inference_mode(False):  # views of it are wrapped, too, and must not be of another kind
            return torch.Tensor._make_wrapper_subclass(
                cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                device=device, requires_grad=inner.requires_grad,
            )  # fmt: skip

    def __init__(self, inner: Tensor, device: torch.device, block: Block) -> None:
        self.inner, self.block = inner.detach(), block

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return SIMULATIONS[-1].run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        """See `torch.Tensor.data_ptr`: of the numbers."""
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        """See `torch.Tensor.untyped_storage`: of the numbers."""
        return self.inner.untyped_storage()

    def __getitem__(self, key: Any) -> Any:
        return torch.Tensor.__getitem__(self, _index(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        torch.Tensor.__setitem__(self, _index(key), value)

    def tolist(self) -> Any:
        """See `torch.Tensor.tolist`."""
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Raises, as torch does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def record_stream(self, stream: SimulatedStream) -> None:
        """See `torch.Tensor.record_stream`."""
        self.block.record_stream(stream)

    def _get_data(self) -> Tensor:
        return self.detach()

    def _set_data(self, value: Tensor) -> None:
        assert isinstance(value, DeviceTensor), "a device tensor was given the data of another device"
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner, self.block = value.inner, value.block

    data = property(_get_data, _set_data)  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=self.requires_grad)
        memo[id(self)] = made
        return made


def _index(key: Any) -> Any:
    """An index whose lists are tensors: torch makes these past all dispatch."""
    parts = key if isinstance(key, tuple) else (key,)
    made = tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts)
    return made if isinstance(key, tuple) else made[0]


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
        for _, _, _, results in self.capture.operations:
            for each in results:
                if isinstance(each, DeviceTensor) and each.block in self.capture.born:
                    each.block.uses = Uses()
                    _spoil(each.inner)

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
            again = _on_cpu(func, _inner(args), _inner(kwargs))
            for old, new in zip(results, [t for t in _leaves(again) if isinstance(t, Tensor)], strict=True):
                own = old.inner if isinstance(old, DeviceTensor) else old
                if own.data_ptr() != new.data_ptr():
                    own.copy_(new)

    def spoil(self) -> None:
        """Its memory is used by another graph now."""
        assert self.capture is not None
        for _, _, _, results in self.capture.operations:
            for each in results:
                if isinstance(each, DeviceTensor) and each.block in self.capture.born:
                    _spoil(each.inner)


def _spoil(numbers: Tensor) -> None:
    """Fill with nonsense."""
    with torch.inference_mode():
        if numbers.is_floating_point():
            numbers.fill_(float("nan"))
        elif numbers.dtype != torch.bool:
            numbers.fill_(-(2 ** (8 * numbers.element_size() - 2)) if numbers.dtype.is_signed else 255)


def _leaves(values: Any) -> list[Any]:
    """What arguments and results hold; torch's own function for it takes longer than the operation."""
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return [values]
    found: list[Any] = []
    for each in values:
        found.extend(_leaves(each) if isinstance(each, tuple | list | dict) else (each,))
    return found


def _mapped(function: Any, values: Any) -> Any:
    if isinstance(values, tuple | list):
        return type(values)([_mapped(function, each) for each in values])
    if isinstance(values, dict):
        return {key: _mapped(function, each) for key, each in values.items()}
    return function(values)


def _inner_of(value: Any) -> Any:
    return value.inner if isinstance(value, DeviceTensor) else value


def _inner(values: Any) -> Any:
    return _mapped(_inner_of, values)


def _on_cpu(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation gives, in a dtype that the CPU has for it."""
    if func is torch.ops.aten.histc.default and not args[0].is_floating_point():
        return func(args[0].double(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


class _Mode(TorchDispatchMode):
    """Sees what has no tensor of a device among its arguments."""

    def __init__(self, cuda: Simulation) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.cuda.run(func, args, kwargs or {})


class Simulation:
    """The devices, and what is under way on them."""

    def __init__(self, devices: int, capability: tuple[int, int]) -> None:
        self.count, self.capability, self.current = devices, capability, 0
        self.interpreted = bool((layers_triton.kernels() or {}).get("interpreted"))
        self.streams: list[SimulatedStream] = []
        self.stack = StreamStack()
        self.host: Clock = {}  # what the host has waited for
        self.waits: list[str] = []  # why it did
        self.copies = 0  # to a device
        self.pinned: dict[int, Tensor] = {}
        self.graphs: weakref.WeakSet[SimulatedGraph] = weakref.WeakSet()
        self.default: list[SimulatedStream] = []
        self.sent: list[tuple[Tensor, Tensor, SimulatedStream, int]] = []

    def device(self, device: Any = None) -> torch.device:
        """A device with its index."""
        made = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cuda")
        return torch.device("cuda", self.current if made.index is None else made.index)

    def current_stream(self, device: Any = None) -> SimulatedStream:
        """Of a device, in this thread."""
        wanted = self.device(device)
        own = [each for each in self.stack.streams if each.device == wanted]
        return own[-1] if own else self.default[wanted.index]

    def host_waits(self, clock: Clock, why: str) -> None:
        """The host waits until a clock's launches are done; what was copied by them has arrived."""
        if any(stream.capture is not None for stream in self.streams):
            raise SimulatedCudaError(f"cudaErrorStreamCaptureUnsupported: {why} in a capture")
        self.waits.append(why)
        merge(self.host, clock)
        for stream in self.streams:
            done = [each for each in stream.late if each[0] <= self.host.get(stream, 0)]
            stream.late = [each for each in stream.late if each[0] > self.host.get(stream, 0)]
            with torch.inference_mode():
                for _, target, values in done:
                    target.copy_(values)
        waiting = []
        for source, values, stream, launch in self.sent:
            if not torch.equal(_bits(source), _bits(values)):
                raise SimulatedCudaError("a pinned tensor was changed before its copy to the device was done")
            if launch > self.host.get(stream, 0):
                waiting.append((source, values, stream, launch))
        self.sent = waiting

    def synchronize(self, device: Any = None) -> None:
        """The host waits for a device."""
        clock: Clock = {}
        for stream in self.streams:
            if stream.device == self.device(device):
                merge(clock, stream.clock)
        self.host_waits(clock, "torch.cuda.synchronize()")

    # Operations --------------------------------------------------------------------------------------------------

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operation of torch gives; see the module."""
        name = func._schema.name
        leaves = _leaves((args, kwargs))
        ours = [each for each in leaves if isinstance(each, DeviceTensor)]
        if func.namespace == "eddecode" and self.interpreted:  # its parts are seen one by one
            with _Mode(self):
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        wanted = next((each for each in leaves if isinstance(each, torch.device)), None)
        if name in ("aten::pin_memory", "aten::_pin_memory") or kwargs.get("pin_memory"):
            return self._pin(func, args, kwargs)
        if name == "aten::is_pinned":
            return self._is_pinned(args[0])
        if not ours and (wanted is None or wanted.type != "cuda"):
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and func.has_kernel_for_dispatch_key(
            torch._C.DispatchKey.CompositeImplicitAutograd
        ) and name != "aten::scaled_dot_product_attention":
            with _Mode(self):
                return func.decompose(*args, **kwargs)
        if name in COPIES:
            return self._copy(func, name, args, kwargs)
        return self._compute(func, name, args, kwargs, ours, leaves)

    def _compute(self, func: Any, name: str, args: Any, kwargs: Any, ours: list[Any], leaves: list[Any]) -> Any:
        device = ours[0].device if ours else self.device(kwargs["device"])
        if any(each.device != device for each in ours):
            raise SimulatedCudaError(f"{func}: tensors on {sorted({str(each.device) for each in ours})}")
        stream = self.current_stream(device)
        foreign = [t for t in leaves if isinstance(t, Tensor) and not isinstance(t, DeviceTensor)]
        for each in foreign:
            if name in TAKES_HOST_INDICES:
                self._wait_for(stream, f"{func} with an index on the CPU")
            elif (each.dim() or func.namespace != "aten") and not name.endswith("_like"):
                raise SimulatedCudaError(f"{func}: tensors on {device} and on the CPU, {tuple(each.shape)}")
        is_dynamic = torch.Tag.dynamic_output_shape in func.tags and not _is_plain_index(name, args)
        grouped = name == "aten::_grouped_mm" and (ours[0].dtype != torch.bfloat16 or self.capability < (9, 0))
        if name in WAITS or is_dynamic or grouped:
            self._wait_for(stream, str(func))
        given = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        if "device" in kwargs:
            given["device"] = CPU
        written = _written(func, args, kwargs)
        if not func.is_view:
            self._launch(stream, func, ours, written)
        result = _on_cpu(func, _inner(args), _inner(given))
        return self._wrapped(func, args, given, result, ours, stream, device)

    def _launch(self, stream: SimulatedStream, what: Any, ours: list[DeviceTensor], written: list[Any]) -> int:
        if stream.capture is not None:
            stream.capture.keep(written)
        writes = [each.block for each in written]
        reads = [each.block for each in ours if each.block not in writes]
        return stream.launch(reads, writes, what)

    def _wrapped(
        self, func: Any, args: Any, kwargs: Any, result: Any, ours: list[Any], stream: SimulatedStream, device: torch.device,
    ) -> Any:
        """Results as tensors of the device: those that were given, views of them, or new ones."""
        by_storage = {each.inner.untyped_storage().data_ptr(): each for each in ours if each.inner.numel()}
        given = {id(each.inner): each for each in ours}
        made: list[DeviceTensor] = []

        def wrap(each: Any) -> Any:
            if not isinstance(each, Tensor):
                return each
            if id(each) in given:
                same = given[id(each)]
                if same.shape != each.shape or same.stride() != each.stride():
                    raise SimulatedCudaError(f"{func} changes the shape of a tensor in place: not simulated")
                made.append(same)
                return same
            source = by_storage.get(each.untyped_storage().data_ptr()) if each.numel() else None
            block = source.block if source is not None else self._allocate(stream)
            new = DeviceTensor(each, device, block)
            if source is None:
                uses = block.uses if stream.capture is None else stream.capture.uses_of(block)
                uses.writes[stream] = stream.clock[stream]
            made.append(new)
            return new

        wrapped = _mapped(wrap, result)
        if stream.capture is not None and not func.is_view:
            stream.capture.operations.append((func, args, kwargs, made))
        return wrapped

    def _allocate(self, stream: SimulatedStream) -> Block:
        block = Block(stream)
        if stream.capture is not None:
            stream.capture.born.add(block)
        return block

    def _wait_for(self, stream: SimulatedStream, why: str) -> None:
        self.host_waits(stream.clock, why)

    # Copies ------------------------------------------------------------------------------------------------------

    def _pin(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        if any(stream.capture is not None for stream in self.streams):
            raise SimulatedCudaError("pinned memory is allocated in a capture")
        if func._schema.name in ("aten::pin_memory", "aten::_pin_memory"):
            made = args[0].clone()
        else:
            made = func(*args, **{**kwargs, "pin_memory": False})
        self.pinned[made.data_ptr()] = made
        return made

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def _copy(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
        if name == "aten::copy_":
            target, source = args[0], args[1]
            without_waiting = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            if isinstance(source, Tensor) and not isinstance(source, DeviceTensor) and source.dim() == 0 and not isinstance(target, DeviceTensor):
                return func(*args, **kwargs)
        else:
            source, without_waiting = args[0], bool(kwargs.get("non_blocking"))
            device = kwargs.get("device") or source.device
            device = self.device(device) if device.type == "cuda" else device
            with torch.no_grad():
                like = func(_inner(source), **{**kwargs, "device": CPU, "non_blocking": False})
            if device.type == "cpu":
                target = like
            else:
                stream = self.current_stream(device)
                target = DeviceTensor(like, device, self._allocate(stream))
        return self._transfer(target, source, without_waiting, func)

    def _transfer(self, target: Tensor, source: Tensor, without_waiting: bool, func: Any) -> Tensor:
        """Copy between two places."""
        here, there = isinstance(target, DeviceTensor), isinstance(source, DeviceTensor)
        if here and there:
            self._between(target, source, func)
        elif here:
            stream = self.current_stream(target.device)
            if stream.capture is not None:
                raise SimulatedCudaError(f"{func}: a copy from the host in a capture, {tuple(source.shape)}")
            launch = self._launch(stream, func, [], [target])
            self.copies += 1
            target.inner.copy_(source)
            if without_waiting and self._is_pinned(source):
                self.sent.append((source, source.clone(), stream, launch))
            else:
                self._wait_for(stream, "a copy from pageable memory")
        else:
            stream = self.current_stream(source.device)
            if stream.capture is not None:
                raise SimulatedCudaError(f"{func}: a copy to the host in a capture, {tuple(source.shape)}")
            launch = self._launch(stream, func, [source], [])
            values = source.inner.to(target.dtype).expand(target.shape).clone()
            if without_waiting:
                stream.late.append((launch, target, values))
                _spoil(target)
            else:
                target.copy_(values)
                self._wait_for(stream, "a copy to the host")
        return target

    def _between(self, target: DeviceTensor, source: DeviceTensor, func: Any) -> None:
        """A copy on a device, or from one to another: torch has the streams of both wait for each other."""
        stream = self.current_stream(target.device)
        if source.device != target.device:
            other = self.current_stream(source.device)
            if stream.capture is not None or other.capture is not None:
                raise SimulatedCudaError("a copy between two devices in a capture")
            stream.wait_stream(other)
        self._launch(stream, func, [source, target], [target])
        if source.device != target.device:
            self.current_stream(source.device).wait_stream(stream)
        target.inner.copy_(source.inner)
        if stream.capture is not None:
            stream.capture.operations.append((torch.ops.aten.copy_.default, (target, source), {}, [target]))

    # Triton ------------------------------------------------------------------------------------------------------

    def launch_kernel(self, run: Any, args: Any, kwargs: Any) -> Any:
        """Run a kernel in the interpreter."""
        leaves = _leaves((args, kwargs))
        ours = [each for each in leaves if isinstance(each, DeviceTensor)]
        if not ours:
            return run(*args, **kwargs)
        if any(isinstance(each, Tensor) and not isinstance(each, DeviceTensor) for each in leaves):
            raise SimulatedCudaError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        if any(each.device.index != self.current for each in ours):
            raise SimulatedCudaError("a kernel was launched while another device is current")
        stream = self.current_stream()
        unlike = [each for each in ours if each.block in {t.block for t in ours}]
        self._launch(stream, "a Triton kernel", [], unlike)

        def again(*values: Any, **named: Any) -> None:
            run(*values, **named)

        if stream.capture is not None:
            stream.capture.operations.append((again, args, kwargs, []))
        return again(*_inner(args), **_inner(kwargs))


def _bits(values: Tensor) -> Tensor:
    return torch.empty(values.numel(), dtype=values.dtype).copy_(values.reshape(-1)).view(torch.uint8)


def _is_plain_index(name: str, args: Any) -> bool:
    return name == "aten::index" and not any(
        each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
    )


def _written(func: Any, args: Any, kwargs: Any) -> list[DeviceTensor]:
    """The tensors that an operation writes, by its schema."""
    found: list[Any] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += _leaves(value)
    return [each for each in found if isinstance(each, DeviceTensor)]


# What torch.cuda is within the simulation ----------------------------------------------------------------------------


class _DeviceContext:
    """See `torch.cuda.device`."""

    def __init__(self, device: Any) -> None:
        self.cuda = SIMULATIONS[-1]
        self.wanted = self.cuda.current if device is None else self.cuda.device(device).index

    def __enter__(self) -> None:
        self.before, self.cuda.current = self.cuda.current, self.wanted

    def __exit__(self, *_: object) -> None:
        self.cuda.current = self.before


@contextlib.contextmanager
def _stream_context(stream: SimulatedStream | None) -> Iterator[None]:
    if stream is None:
        yield
        return
    with _DeviceContext(stream.device), stream:
        yield


@contextlib.contextmanager
def _graph_context(
    graph: SimulatedGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global", **_: Any
) -> Iterator[None]:
    """See `torch.cuda.graph`: it waits for the device first."""
    cuda = SIMULATIONS[-1]
    cuda.synchronize()
    with _stream_context(stream or SimulatedStream()):
        graph.capture_begin(pool, capture_error_mode)
        try:
            yield
        finally:
            graph.capture_end()


def _patches(cuda: Simulation) -> dict[str, Any]:
    def no_capture(what: str) -> None:
        if any(stream.capture is not None for stream in cuda.streams):
            raise SimulatedCudaError(f"{what} in a capture")

    def set_device(device: Any) -> None:
        cuda.current = cuda.device(device).index

    properties = SimpleNamespace(
        name="Simulated", major=cuda.capability[0], minor=cuda.capability[1], total_memory=MEMORY,
        multi_processor_count=132, shared_memory_per_block_optin=232448, L2_cache_size=50 << 20, warp_size=32,
    )  # fmt: skip
    return {
        "_lazy_init": lambda: None, "is_available": lambda: True, "is_initialized": lambda: True,
        "device_count": lambda: cuda.count, "current_device": lambda: cuda.current, "set_device": set_device,
        "device": _DeviceContext, "Stream": SimulatedStream, "Event": SimulatedEvent, "CUDAGraph": SimulatedGraph,
        "graph": _graph_context, "stream": _stream_context, "current_stream": cuda.current_stream,
        "default_stream": lambda device=None: cuda.default[cuda.device(device).index],
        "synchronize": cuda.synchronize, "empty_cache": lambda: no_capture("empty_cache()"),
        "memory_reserved": lambda device=None: 0, "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 1, "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (MEMORY // 2, MEMORY), "get_device_name": lambda device=None: "Simulated",
        "get_device_capability": lambda device=None: cuda.capability,
        "get_device_properties": lambda device=None: properties,
        "is_current_stream_capturing": lambda: cuda.current_stream().capture is not None,
        "is_bf16_supported": lambda *_: True, "manual_seed_all": lambda seed: None, "manual_seed": lambda seed: None,
        "get_rng_state": lambda device=None: None, "set_rng_state": lambda state, device=None: None,
    }  # fmt: skip


def _host_first(make: Any) -> Any:
    """A function of torch that makes tensors past all dispatch, as one that makes them on the CPU and copies them."""

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        wanted = torch.empty(0).device if device is None else torch.device(device)
        if isinstance(data, Tensor) and (device is None or data.device == wanted):
            return make(data, **options)
        if wanted.type != "cuda":
            return make(data, device=wanted, **options)
        here = data.cpu() if isinstance(data, Tensor) else data
        return make(here, device="cpu", **options).to(SIMULATIONS[-1].device(wanted))

    return made


GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl {
static NoOpDeviceGuardImpl<DeviceType::CUDA> guard;
static bool known = (device_guard_impl_registry[static_cast<size_t>(DeviceType::CUDA)].store(&guard), true);
}
"""


@cache
def _load_guard() -> None:
    """Let torch's own C++ name a CUDA device as the current one: without one it raises before anything is simulated."""
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "guard.so"
        compiler = [*find_compiler(), "-std=c++20", "-shared", "-fPIC", "-x", "c++", "-"]
        paths = [f"-I{root}/include", f"-L{root}/lib", "-lc10", "-o", str(library)]
        subprocess.run([*compiler, *paths], input=GUARD, text=True, check=True, timeout=100)
        ctypes.CDLL(str(library))


def _patch_interpreter(cuda: Simulation, stack: contextlib.ExitStack) -> None:
    from triton.runtime.interpreter import GridExecutor

    run = GridExecutor.__call__

    def launch(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return cuda.launch_kernel(lambda *a, **k: run(executor, *a, **k), args, kwargs)

    stack.enter_context(mock.patch.object(GridExecutor, "__call__", launch))


@contextlib.contextmanager
def simulated_cuda(devices: int = 1, capability: tuple[int, int] = (9, 0)) -> Iterator[Simulation]:
    """Within the block there are that many GPUs; see the module."""
    _load_guard()
    cuda_graph._streams.cache_clear()  # they belong to another simulation
    cuda = Simulation(devices, capability)
    SIMULATIONS.append(cuda)
    cuda.default = [SimulatedStream(torch.device("cuda", i)) for i in range(devices)]
    with contextlib.ExitStack() as stack:
        for name, value in _patches(cuda).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(mock.patch.object(torch, name, _host_first(getattr(torch, name))))
        if cuda.interpreted:
            _patch_interpreter(cuda, stack)
        else:  # as without triton: the models' own layers, and sampling by its implementation for a CPU
            stack.enter_context(mock.patch.object(layers_triton, "kernels", lambda: None))
        torch.__future__.set_swap_module_params_on_conversion(True)  # else a module sets the data of a plain parameter
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, False)
        stack.enter_context(_Mode(cuda))
        try:
            yield cuda
        finally:
            SIMULATIONS.pop()
