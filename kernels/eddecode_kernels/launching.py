"""Launching Triton kernels: on the device of their tensors, and with errors that callers know how to answer.

Triton launches on the current device, whatever device the tensors are on. And its compiler raises errors of its own
(too little shared memory, for example), where torch raises a RuntimeError.

Triton compiles a kernel when it is first launched, up to a second each, one after the other. What a computation is
going to launch can be compiled before by several threads (`compile_ahead`), which find most of the compiler without
Python's lock.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

COMPILERS = 8  # threads

Function = TypeVar("Function", bound=Callable[..., Any])


class LaunchError(RuntimeError):
    """A kernel cannot be compiled or launched."""


def on_device_of(tensors: Iterable[Any]) -> AbstractContextManager[Any]:
    """Within the block the CUDA device of the first of these that is a tensor is the current one."""
    first = next((each for each in tensors if isinstance(each, Tensor)), None)
    if first is None or first.device.type != "cuda" or first.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(first.device)


def launches(function: Function) -> Function:
    """A function that launches kernels on its tensors: on their device, every error being one that torch raises too.

    Raises:
        LaunchError: a kernel cannot be compiled or launched.
    """

    @wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            with on_device_of(arguments):
                return function(*arguments, **options)
        except (RuntimeError, ValueError, TypeError):
            raise
        except Exception as error:
            why = str(error).strip().splitlines()
            raise LaunchError(
                f"the Triton kernel of {function.__name__} cannot be launched "
                f"({type(error).__name__}: {why[0] if why else 'no message'})"
            ) from error

    return guarded  # type: ignore[return-value]


# Compiling ----------------------------------------------------------------------------------------------------------


class _Compilers:
    """Threads that compile kernels, each kernel once."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self._known: set[Any] = set()

    def add(self, kernel: Any, grid: Any, arguments: Sequence[Any], constants: dict[str, Any]) -> None:
        """Compile a kernel as it would be launched, unless that is being done."""
        kind = (kernel.__name__, *map(_kind, arguments), *sorted(constants.items()))
        if kind not in self._known:
            self._known.add(kind)
            self.pool.submit(_compile, kernel, grid, arguments, constants)


class _Thread(threading.local):
    """What belongs to a thread: other threads go on to launch."""

    compilers: _Compilers | None = None  # within `compile_ahead`


_thread = _Thread()


def launch_kernel(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel; within `compile_ahead` compile it only."""
    if _thread.compilers is not None:
        _thread.compilers.add(kernel, grid, arguments, constants)
    else:
        kernel[grid](*arguments, **constants)


def compile_ahead(device: torch.device, run: Callable[[], Any]) -> None:
    """Compile the kernels that `run` launches on a CUDA device, some at a time; nothing is launched.

    What they would write stays as it is, so that nothing that `run` computes may be used. An error is left to the
    launches to come. On another device nothing is done.
    """
    if device.type != "cuda" or _thread.compilers is not None:
        return
    with ThreadPoolExecutor(min(COMPILERS, os.cpu_count() or 1)) as pool:
        _thread.compilers = _Compilers(pool)
        try:
            run()
        except Exception as error:
            _log.info("compiling ahead: %s", error)
        finally:
            _thread.compilers = None


@contextmanager
def launching() -> Iterator[None]:
    """Within the block kernels are launched, also within `compile_ahead`: for what decides by results."""
    before, _thread.compilers = _thread.compilers, None
    try:
        yield
    finally:
        _thread.compilers = before


def _kind(argument: Any) -> Any:
    """What Triton compiles an argument for: at least as fine as its own classes."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return int, argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return type(argument)


def _compile(kernel: Any, grid: Any, arguments: Sequence[Any], constants: dict[str, Any]) -> None:
    try:
        with on_device_of(arguments):  # each thread has a current device of its own
            kernel.warmup(*arguments, grid=grid, **constants)
    except Exception as error:
        _log.info("compiling %s ahead: %s", kernel.__name__, error)
