"""What each operation of torch does on a simulated device, and what it must not do."""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eddecode_kernels import layers_triton
from helpers.simulated.graphs import SimulatedGraph, on_cpu, spoil
from helpers.simulated.streams import (
    Block,
    Clock,
    SimulatedCudaError,
    SimulatedStream,
    StreamStack,
    merge,
)
from helpers.simulated.tensors import DeviceTensor, inner, leaves, mapped

CPU = torch.device("cpu")
COPIES = ("aten::copy_", "aten::_to_copy")
TAKES_HOST_INDICES = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
WAITS = (
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
)


class DeviceMode(TorchDispatchMode):
    """Sees what has no tensor of a device among its arguments."""

    def __init__(self, cuda: Simulation) -> None:
        super().__init__()
        self.cuda = cuda

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled by torch here; to tell it so for each operation takes long."""
        return False

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
        given = leaves((args, kwargs)) if kwargs else leaves(args)
        ours = [each for each in given if isinstance(each, DeviceTensor)]
        if func.namespace == "eddecode" and self.interpreted:  # its parts are seen one by one
            with DeviceMode(self):
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        wanted = next((each for each in given if isinstance(each, torch.device)), None)
        if name in ("aten::pin_memory", "aten::_pin_memory") or kwargs.get("pin_memory"):
            return self._pin(func, args, kwargs)
        if not ours and (wanted is None or wanted.type != "cuda"):
            return self._is_pinned(args[0]) if name == "aten::is_pinned" else func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and _has_parts(func):
            with DeviceMode(self):  # by torch's own code, not by what Python has for it, which takes longer
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        if name in COPIES:
            return self._copy(func, name, args, kwargs)
        return self._compute(func, name, args, kwargs, given, ours)

    def _compute(
        self, func: Any, name: str, args: Any, kwargs: Any, values: list[Any], ours: list[DeviceTensor]
    ) -> Any:
        device = ours[0].device if ours else self.device(kwargs["device"])
        if any(each.device != device for each in ours):
            raise SimulatedCudaError(f"{func}: tensors on {sorted({str(each.device) for each in ours})}")
        stream = self.current_stream(device)
        foreign = [t for t in values if isinstance(t, Tensor) and not isinstance(t, DeviceTensor)]
        for each in foreign:
            if name in TAKES_HOST_INDICES:
                self._wait_for(stream, f"{func} with an index on the CPU")
            elif (each.dim() or func.namespace != "aten") and not name.endswith("_like"):
                raise SimulatedCudaError(f"{func}: tensors on {device} and on the CPU, {tuple(each.shape)}")
        is_dynamic = torch.Tag.dynamic_output_shape in func.tags and not _is_plain_index(name, args)
        grouped = name == "aten::_grouped_mm" and (
            ours[0].dtype != torch.bfloat16 or self.capability < (9, 0)
        )
        if name in WAITS or is_dynamic or grouped:
            self._wait_for(stream, str(func))
        given = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        if "device" in kwargs:
            given["device"] = CPU
        written = _written(func, args, kwargs)
        if not func.is_view:
            self._launch(stream, func, ours, written)
        result = on_cpu(func, inner(args), inner(given))
        return self._wrapped(func, args, given, result, ours, stream, device)

    def _launch(
        self, stream: SimulatedStream, what: Any, ours: list[DeviceTensor], written: list[Any]
    ) -> int:
        if stream.capture is not None:
            stream.capture.keep(written)
        writes = [each.block for each in written]
        reads = [each.block for each in ours if each.block not in writes]
        return stream.launch(reads, writes, what)

    def _wrapped(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        ours: list[Any],
        stream: SimulatedStream,
        device: torch.device,
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

        wrapped = mapped(wrap, result)
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
        else:
            source, without_waiting = args[0], bool(kwargs.get("non_blocking"))
            device = kwargs.get("device") or source.device
            device = self.device(device) if device.type == "cuda" else device
            with torch.no_grad():
                like = func(inner(source), **{**kwargs, "device": CPU, "non_blocking": False})
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
                spoil(target)
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
        given = leaves((args, kwargs))
        ours = [each for each in given if isinstance(each, DeviceTensor)]
        if not ours:
            return run(*args, **kwargs)
        if any(isinstance(each, Tensor) and not isinstance(each, DeviceTensor) for each in given):
            raise SimulatedCudaError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        if any(each.device.index != self.current for each in ours):
            raise SimulatedCudaError("a kernel was launched while another device is current")
        stream = self.current_stream()
        self._launch(stream, "a Triton kernel", [], ours)
        if stream.capture is not None:
            stream.capture.operations.append((run, args, kwargs, []))
        return run(*inner(args), **inner(kwargs))


def _bits(values: Tensor) -> Tensor:
    return torch.empty(values.numel(), dtype=values.dtype).copy_(values.reshape(-1)).view(torch.uint8)


def _is_plain_index(name: str, args: Any) -> bool:
    return name == "aten::index" and not any(
        each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
    )


def _written(func: Any, args: Any, kwargs: Any) -> list[DeviceTensor]:
    """The tensors that an operation writes, by its schema."""
    found: list[Any] = []
    for i, name in _arguments_written(func):
        found += leaves(args[i] if i < len(args) else kwargs.get(name))
    return [each for each in found if isinstance(each, DeviceTensor)]


@cache
def _arguments_written(func: Any) -> list[tuple[int, str]]:
    """Place and name of each."""
    arguments = enumerate(func._schema.arguments)
    return [
        (i, each.name) for i, each in arguments if each.alias_info is not None and each.alias_info.is_write
    ]


@cache
def _has_parts(func: Any) -> bool:
    """Whether torch computes it by other operations, which are seen one by one."""
    composite = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return composite and func._schema.name != "aten::scaled_dot_product_attention"
