"""The SiLU activation (Elfwing et al., arXiv 1702.03118) with the same bits for a number wherever it stands."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from eddecode_kernels.jit import library
from eddecode_kernels.types import UnavailableError


def silu_for(dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """The compiled x·sigmoid(x) for float32 on the CPU, or None for what the library does well enough by itself."""
    if dtype != torch.float32:
        return None  # in bfloat16 the library's two ways round to the same
    try:
        compiled: Any = library().eddecode_silu_f32
    except UnavailableError:
        return None
    compiled.argtypes, compiled.restype = (c_void_p, c_void_p, c_int64), None

    def silu(x: Tensor) -> Tensor:
        if x.dtype is not torch.float32:
            raise ValueError(
                f"x is {x.dtype}; expected torch.float32: a model must not be converted while it decodes"
            )
        x = x.contiguous()
        y = torch.empty_like(x)
        compiled(x.data_ptr(), y.data_ptr(), x.numel())
        return y

    return silu
