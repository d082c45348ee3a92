"""Attention of new tokens over the slots of a cache, on the CPU: each query over the keys that it sees, and no others.

The library's attention wants a mask, rounds bfloat16 weights, and for the few queries of a decode step takes several
times as long as reading the keys does. `attend` is the compiled one; `available` says whether this machine has it.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_float, c_int64, c_void_p

import torch
from torch import Tensor

from eddecode_kernels.jit import library
from eddecode_kernels.types import UnavailableError

_NAMES = {torch.float32: "eddecode_attend_f32", torch.bfloat16: "eddecode_attend_bf16"}


class _Call(Structure):
    """The struct `Attention` of native/attention.cpp, field for field."""

    _fields_ = (
        *((name, c_void_p) for name in ("queries", "keys", "values", "out", "first", "stop")),
        *((name, c_int64) for name in ("rows", "tokens", "heads", "key_heads", "key_size", "value_size")),
        *((name, c_int64) for name in ("query_row", "query_head", "query_token")),
        *((name, c_int64) for name in ("key_row", "key_head", "value_row", "value_head")),
        ("threads", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
    )


def available(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `attend` serves this dtype and device here."""
    if dtype not in _NAMES or device.type != "cpu":
        return False
    try:
        library()
    except UnavailableError:
        return False
    return True


def attend(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, stop: Tensor, scale: float, softcap: float = 0.0
) -> Tensor:
    """softmax(scale·q·kᵀ)·v over keys first ≤ position < stop of every query, in float32.

    Args:
        query: (B, H, T, D) float32 or bfloat16, D contiguous.
        key: (B, G, L, D) of the same dtype, G a divisor of H; each key right behind the one before.
        value: (B, G, L, E), likewise.
        first, stop: (B, T) int64 contiguous, 0 ≤ first < stop ≤ L.
        scale: of the scores.
        softcap: c in c·tanh(score/c), applied after the scale (Gemma 2, arXiv 2408.00118, §2); 0 is none.

    Returns:
        (B, T, H, E) contiguous, of the query's dtype.

    Raises:
        ValueError: dtypes, shapes or strides are not as above.
    """
    rows, heads, tokens, size = query.shape
    key_heads, width = value.shape[1], value.shape[3]
    fits = (
        query.dtype in _NAMES
        and query.dtype == key.dtype == value.dtype
        and key.shape == (rows, key_heads, value.shape[2], size)
        and heads % key_heads == 0
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and key.stride(2) == size
        and value.stride(2) == width
        and first.shape == stop.shape == (rows, tokens)
        and first.is_contiguous()
        and stop.is_contiguous()
    )
    if not fits:
        raise ValueError(
            f"attend cannot take query {tuple(query.shape)} {query.dtype}, key {tuple(key.shape)} {key.dtype}, value "
            f"{tuple(value.shape)} {value.dtype}, first {tuple(first.shape)}; see its docstring"
        )
    out = torch.empty(rows, tokens, heads, width, dtype=query.dtype)
    call = _Call(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr(), first.data_ptr(), stop.data_ptr(),
        rows, tokens, heads, key_heads, size, width,
        query.stride(0), query.stride(1), query.stride(2),
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        torch.get_num_threads(), scale, softcap,
    )  # fmt: skip
    getattr(library(), _NAMES[query.dtype])(byref(call))
    return out
