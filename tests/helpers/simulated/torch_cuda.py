"""What `torch.cuda` is within a simulation."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from eddecode.execution import capture
from eddecode_kernels import layers_triton
from eddecode_kernels.jit import cache_folder, find_compiler
from helpers.simulated.graphs import SimulatedGraph
from helpers.simulated.simulation import DeviceMode, Simulation
from helpers.simulated.streams import SIMULATIONS, SimulatedCudaError, SimulatedEvent, SimulatedStream

MEMORY = 80 << 30  # bytes of a device


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
        "graph_pool_handle": object,
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
    root, compiler = Path(torch.__file__).parent, find_compiler()
    facts = repr((torch.__version__, str(root), compiler, GUARD))
    library = cache_folder() / f"simulated-{hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()}.so"
    if not library.exists():  # compiling takes longer than a test
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            command = [*compiler, "-std=c++20", "-shared", "-fPIC", "-x", "c++", "-"]
            paths = [f"-I{root}/include", f"-L{root}/lib", "-lc10", "-o", str(made)]
            subprocess.run([*command, *paths], input=GUARD, text=True, check=True, timeout=100)
            made.replace(library)  # another process never sees half of it
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
    with torch.device("meta"):  # torch notes which functions make tensors: now, not while some are replaced
        torch.empty(0)
    for kept in (capture._memory, capture._warm_stream, capture.side_stream):  # of another simulation
        getattr(kept, "cache_clear", getattr(kept, "clear", None))()
    cuda = Simulation(devices, capability)
    SIMULATIONS.append(cuda)
    cuda.default = [SimulatedStream(torch.device("cuda", i)) for i in range(devices)]
    with contextlib.ExitStack() as stack:
        for name, value in _patches(cuda).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):  # nothing is left to undo
            stack.enter_context(mock.patch.object(torch._C, name, create=True))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(mock.patch.object(torch, name, _host_first(getattr(torch, name))))
        if cuda.interpreted:
            _patch_interpreter(cuda, stack)
        else:  # as without triton: the models' own layers, and sampling by its implementation for a CPU
            stack.enter_context(mock.patch.object(layers_triton, "kernels", return_value=None))
        torch.__future__.set_swap_module_params_on_conversion(
            True
        )  # else a module sets the data of a plain parameter
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, False)
        stack.enter_context(DeviceMode(cuda))
        try:
            yield cuda
        finally:
            SIMULATIONS.pop()
