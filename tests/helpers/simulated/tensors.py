"""Tensors that say that they are on a CUDA device, and the numbers behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers.simulated.streams import SIMULATIONS, Block, SimulatedStream


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
        return torch.Tensor.__getitem__(self, index_of(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        torch.Tensor.__setitem__(self, index_of(key), value)

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


def index_of(key: Any) -> Any:
    """An index whose lists are tensors: torch makes these past all dispatch."""
    parts = key if isinstance(key, tuple) else (key,)
    made = tuple(
        torch.tensor(part, dtype=None if part else torch.int64) if isinstance(part, list) else part
        for part in parts
    )
    return made if isinstance(key, tuple) else made[0]


def leaves(values: Any) -> list[Any]:
    """What arguments and results hold; torch's own function for it takes longer than the operation."""
    kind = type(values)
    if kind is dict:
        values = values.values()
    elif kind is not tuple and kind is not list and not isinstance(values, tuple | list):
        return [values]
    found: list[Any] = []
    for each in values:
        if isinstance(each, NESTED):
            found += leaves(each)
        else:
            found.append(each)
    return found


NESTED = (tuple, list, dict)


def mapped(function: Any, values: Any) -> Any:
    """The same, with what it holds given to a function."""
    if isinstance(values, tuple | list):
        return type(values)(
            [mapped(function, each) if isinstance(each, NESTED) else function(each) for each in values]
        )
    if isinstance(values, dict):
        return {key: mapped(function, each) for key, each in values.items()}
    return function(values)


def _inner_of(value: Any) -> Any:
    return value.inner if isinstance(value, DeviceTensor) else value


def inner(values: Any) -> Any:
    """The same, with the numbers of tensors in their place."""
    return mapped(_inner_of, values)
