"""Root-mean-square normalisation (Zhang & Sennrich, arXiv 1910.07467) of the few rows of a decode step."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_double, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from eddecode_kernels.jit import library
from eddecode_kernels.types import UnavailableError

_NAMES = {torch.float32: "eddecode_rms_norm_f32", torch.bfloat16: "eddecode_rms_norm_bf16"}


def rms_norm_for(
    weight: Tensor, epsilon: float, *, from_one: bool = False
) -> Callable[[Tensor], Tensor] | None:
    """The compiled normalisation with one weight, or None where it does not apply.

    Args:
        weight: (d,) float32 or bfloat16, contiguous, on the CPU.
        epsilon: added to the mean square.
        from_one: the weight counts from one and rounding comes last (Gemma); else the normalised row is rounded to its
            dtype before it is weighted (Llama).

    Returns:
        A function from (…, d) of the weight's dtype to the same.
    """
    if (
        weight.dtype not in _NAMES
        or weight.device.type != "cpu"
        or weight.dim() != 1
        or not weight.is_contiguous()
    ):
        return None
    try:
        compiled: Any = getattr(library(), _NAMES[weight.dtype])
    except UnavailableError:
        return None
    compiled.argtypes, compiled.restype = (
        (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_double, c_int64),
        None,
    )
    stored, size = weight.dtype, weight.shape[0]

    def rms_norm(x: Tensor) -> Tensor:
        if x.dtype is not stored or weight.dtype is not stored or x.shape[-1] != size:
            raise ValueError(
                f"x is {tuple(x.shape)} {x.dtype} and the weight is now {weight.dtype}; expected (…, {size}) {stored}"
            )
        x = x.contiguous()
        y = torch.empty_like(x)
        compiled(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // size, size, epsilon, from_one)
        return y

    return rms_norm
