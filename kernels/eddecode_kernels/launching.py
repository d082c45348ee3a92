"""Launching Triton kernels: on the device of their tensors, and with errors that callers know how to answer.

Triton launches on the current device, whatever device the tensors are on. And its compiler raises errors of its own
(too little shared memory, for example), where torch raises a RuntimeError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

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
