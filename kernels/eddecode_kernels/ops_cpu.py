"""Single operations of a model's layers on the CPU: linear layer, RMSNorm, SiLU, attention over a key-value cache.

All of them give a row the same bits whatever else is in the batch, which torch's own do not. Each `compiled_…` function
returns None where the C++ does not apply (dtype, device, layout) or where there is no compiler.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from ctypes import Structure, byref, c_double, c_float, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from eddecode_kernels.jit import library, library_path, write_atomically
from eddecode_kernels.types import UnavailableError

_LINEAR = {  # (dtype of the weight, of the result) → symbol
    (torch.float32, torch.float32): "eddecode_linear_f32_f32",
    (torch.bfloat16, torch.float32): "eddecode_linear_bf16_f32",
    (torch.bfloat16, torch.bfloat16): "eddecode_linear_bf16_bf16",
}
_RMS_NORM = {torch.float32: "eddecode_rms_norm_f32", torch.bfloat16: "eddecode_rms_norm_bf16"}
_ATTENTION = {torch.float32: "eddecode_attend_f32", torch.bfloat16: "eddecode_attend_bf16"}

MIN_SPEEDUP = {1: 1.05, 8: 1.05, 64: 0.7}
"""Rows → the least ratio of torch's time to that of the compiled linear layer. A decode step has few rows; but where
the processor has matrix units that the compiled one does not use, a sweep's large batches must not lose by it."""
COLD_BYTES = 64 << 20  # more than a cache holds: in a decode step every weight comes from memory
ROUNDS = 7

Operation = Callable[[Tensor], Tensor]


def compiled_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Operation | None:
    """The linear layer x·Wᵀ + b with float32 sums, or None where the C++ does not apply.

    A decode step reads every weight once, so it lasts as long as the reading. This reads at the speed of the memory,
    leaves the weights where and as they are, and can return float32 from bfloat16 weights.

    Args:
        weight: (N, K) float32 or bfloat16, contiguous, on the CPU. The function returned holds on to it.
        bias: (N,) any float dtype, or None.
        dtype: of the result: the weight's, or float32.

    Returns:
        A function from (…, K), of the weight's dtype, to (…, N) of `dtype`.
    """
    symbol = _LINEAR.get((weight.dtype, dtype))
    if symbol is None or weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    function = _function(symbol, c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64)
    if function is None:
        return None
    n, k = weight.shape
    bias32 = None if bias is None else bias.detach().float().contiguous()
    bias_address = None if bias32 is None else bias32.data_ptr()
    stored = weight.dtype

    def linear(x: Tensor, _alive: Tensor | None = bias32) -> Tensor:
        if x.dtype is not stored or weight.dtype is not stored or x.shape[-1] != k:
            raise ValueError(
                f"x is {tuple(x.shape)} {x.dtype} and the weights are now {weight.dtype}; expected (…, {k}) {stored}: "
                "a model must not be converted while it decodes"
            )
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], n, dtype=dtype)
        rows, threads = x.numel() // k, torch.get_num_threads()
        function(weight.data_ptr(), x.data_ptr(), bias_address, y.data_ptr(), n, k, rows, threads)
        return y

    return linear


def compiled_rms_norm(weight: Tensor, epsilon: float, *, weight_offset_one: bool = False) -> Operation | None:
    """RMSNorm (Zhang & Sennrich, arXiv 1910.07467), or None where the C++ does not apply.

    Args:
        weight: (d,) float32 or bfloat16, contiguous, on the CPU.
        epsilon: added to the mean square.
        weight_offset_one: multiply by 1 + weight and round last (Gemma); else the normalized row is rounded to its
            dtype before it is multiplied by the weight (Llama).

    Returns:
        A function from (…, d) of the weight's dtype to the same.
    """
    if weight.dtype not in _RMS_NORM or weight.device.type != "cpu":
        return None
    if weight.dim() != 1 or not weight.is_contiguous():
        return None
    function = _function(
        _RMS_NORM[weight.dtype], c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_double, c_int64
    )
    if function is None:
        return None
    stored, size = weight.dtype, weight.shape[0]

    def rms_norm(x: Tensor) -> Tensor:
        if x.dtype is not stored or weight.dtype is not stored or x.shape[-1] != size:
            raise ValueError(
                f"x is {tuple(x.shape)} {x.dtype} and the weight is now {weight.dtype}; expected (…, {size}) {stored}"
            )
        x = x.contiguous()
        y, rows = torch.empty_like(x), x.numel() // size
        function(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, size, epsilon, weight_offset_one)
        return y

    return rms_norm


def compiled_silu(dtype: torch.dtype) -> Operation | None:
    """SiLU, x·sigmoid(x) (Elfwing et al., arXiv 1702.03118), for float32; None for other dtypes.

    torch takes another path at the end of an array, so that a number's last bits depend on where it is. In bfloat16
    both paths round to the same.
    """
    if dtype != torch.float32:
        return None
    function = _function("eddecode_silu_f32", c_void_p, c_void_p, c_int64)
    if function is None:
        return None

    def silu(x: Tensor) -> Tensor:
        if x.dtype is not torch.float32:
            raise ValueError(
                f"x is {x.dtype}; expected torch.float32: a model must not be converted while it decodes"
            )
        x = x.contiguous()
        y = torch.empty_like(x)
        function(x.data_ptr(), y.data_ptr(), x.numel())
        return y

    return silu


class _Attention(Structure):
    """The struct `Attention` of csrc/attend.h, field for field."""

    _fields_ = (
        *((name, c_void_p) for name in ("queries", "keys", "values", "out", "key_start", "key_end")),
        *((name, c_int64) for name in ("rows", "tokens", "heads", "kv_heads", "key_size", "value_size")),
        *((name, c_int64) for name in ("query_row", "query_head", "query_token")),
        *((name, c_int64) for name in ("key_row", "key_head", "value_row", "value_head")),
        ("threads", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
    )


def attention_available(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `attend` serves this dtype and device on this machine."""
    return dtype in _ATTENTION and device.type == "cpu" and _function(_ATTENTION[dtype], c_void_p) is not None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_start: Tensor,
    key_end: Tensor,
    scale: float,
    softcap: float = 0.0,
) -> Tensor:
    """softmax(scale·q·kᵀ)·v over the keys key_start ≤ position < key_end of every query, in float32.

    Scaled dot product attention in torch takes a mask, rounds bfloat16 weights, and takes several times as long as
    reading the keys for the few queries of a decode step.

    Args:
        query: (B, H, T, D) float32 or bfloat16, D contiguous.
        key: (B, G, L, D) of the same dtype, G a divisor of H; the two innermost axes contiguous.
        value: (B, G, L, E), likewise.
        key_start, key_end: (B, T) int64 contiguous, 0 ≤ key_start < key_end ≤ L.
        scale: factor of the scores.
        softcap: c in c·tanh(score/c), applied after the scale (Gemma 2, arXiv 2408.00118, §2); 0 is none.

    Returns:
        (B, T, H, E) contiguous, of the query's dtype.

    Raises:
        ValueError: dtypes, shapes or strides are not as above.
        UnavailableError: there is no C++ compiler.
    """
    rows, heads, tokens, size = query.shape
    kv_heads, width = value.shape[1], value.shape[3]
    fits = (
        query.dtype in _ATTENTION
        and query.dtype == key.dtype == value.dtype
        and key.shape == (rows, kv_heads, value.shape[2], size)
        and heads % kv_heads == 0
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and key.stride(2) == size
        and value.stride(2) == width
        and key_start.shape == key_end.shape == (rows, tokens)
        and key_start.is_contiguous()
        and key_end.is_contiguous()
    )
    if not fits:
        raise ValueError(
            f"attend cannot take query {tuple(query.shape)} {query.dtype}, key {tuple(key.shape)} {key.dtype}, value "
            f"{tuple(value.shape)} {value.dtype}, key_start {tuple(key_start.shape)}; see its docstring"
        )
    function = _function(_ATTENTION[query.dtype], c_void_p)
    if function is None:
        raise UnavailableError("compiled attention needs a C++ compiler")
    out = torch.empty(rows, tokens, heads, width, dtype=query.dtype)
    call = _Attention(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr(), key_start.data_ptr(), key_end.data_ptr(),
        rows, tokens, heads, kv_heads, size, width,
        query.stride(0), query.stride(1), query.stride(2),
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        torch.get_num_threads(), scale, softcap,
    )  # fmt: skip
    function(byref(call))
    return out


_functions: dict[str, Any] = {}


def _function(symbol: str, *arguments: Any) -> Any:
    """A function of the library with its argument types set, or None where the library cannot be had."""
    if symbol not in _functions:
        try:
            function = getattr(library(), symbol)
        except UnavailableError:
            return None
        function.argtypes, function.restype = arguments, None
        _functions[symbol] = function
    return _functions[symbol]


@cache
def is_faster_than_torch(dtype: torch.dtype) -> bool:
    """Whether the compiled linear layer beats torch's here: measured once per machine, and kept beside the library."""
    if compiled_linear(torch.zeros(1, 1, dtype=dtype), None, dtype) is None:
        return False
    note = library_path().with_suffix(f".{str(dtype).removeprefix('torch.')}.json")
    try:
        return bool(json.loads(note.read_text())["pays"])
    except (OSError, ValueError, KeyError, TypeError):
        speedups = _measure_speedups(dtype)
    faster = all(speedups[str(rows)] > least for rows, least in MIN_SPEEDUP.items())
    with contextlib.suppress(OSError):
        write_atomically(note, json.dumps({"torch_over_compiled": speedups, "pays": faster}))
    return faster


def _measure_speedups(dtype: torch.dtype) -> dict[str, float]:
    """Processor time of torch over that of the compiled linear layer, by rows; weights are not in the cache.

    The least of several rounds on one thread, in processor time: on a busy machine two threads mostly measure how long
    they wait for each other, and what other programs do to the memory only ever adds.
    """
    weights = [
        torch.ones(1024, 1024, dtype=dtype) for _ in range(COLD_BYTES // (1024 * 1024 * dtype.itemsize))
    ]
    compiled = [linear for w in weights if (linear := compiled_linear(w, None, dtype)) is not None]
    speedups = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for rows in MIN_SPEEDUP:
        some = slice(max(1, 8 * len(weights) // max(rows, 8)))  # the more rows, the longer each takes
        x = torch.ones(rows, 1024, dtype=dtype)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            start = time.thread_time()
            for w in weights[some]:
                torch.nn.functional.linear(x, w)
            middle = time.thread_time()
            for linear in compiled[some]:
                linear(x)
            times[0].append(middle - start)
            times[1].append(time.thread_time() - middle)
        speedups[str(rows)] = min(times[0]) / min(times[1])
    torch.set_num_threads(threads)
    return speedups
