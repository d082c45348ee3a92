"""What C++ does for a model's layers on a CPU, one operation at a time: linear layers, RMSNorm, SiLU, attention.

A decode step reads every weight once, so it lasts as long as the reading. A linear layer here reads at the speed of the
memory. Weights stay where and as they are. The order of every sum depends on sizes alone, so that a row has the same
bits in any batch, which torch does not promise. Whole decoder layers are in `decoder_cpu`.

Each `compile…` function returns None where the C++ does not apply (dtype, device, layout) or there is no compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, byref, c_double, c_float, c_int64, c_void_p

import torch
from torch import Tensor

from eddecode_kernels.jit import function
from eddecode_kernels.types import UnavailableError

_LINEAR = {  # (dtype of the weight, of the result) → symbol
    (torch.float32, torch.float32): "eddecode_linear_f32_f32",
    (torch.bfloat16, torch.float32): "eddecode_linear_bf16_f32",
    (torch.bfloat16, torch.bfloat16): "eddecode_linear_bf16_bf16",
    (torch.float16, torch.float32): "eddecode_linear_f16_f32",
    (torch.float16, torch.float16): "eddecode_linear_f16_f16",
}
_RMS_NORM = {
    torch.float32: "eddecode_rms_norm_f32",
    torch.bfloat16: "eddecode_rms_norm_bf16",
    torch.float16: "eddecode_rms_norm_f16",
}
_ATTENTION = {
    torch.float32: "eddecode_attend_f32",
    torch.bfloat16: "eddecode_attend_bf16",
    torch.float16: "eddecode_attend_f16",
}


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
    try:
        kernel = function(symbol, c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64)
    except UnavailableError:
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
        kernel(weight.data_ptr(), x.data_ptr(), bias_address, y.data_ptr(), n, k, rows, threads)
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
    try:
        kernel = function(
            _RMS_NORM[weight.dtype], c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_double, c_int64
        )
    except UnavailableError:
        return None
    stored, size = weight.dtype, weight.shape[0]

    def rms_norm(x: Tensor) -> Tensor:
        if x.dtype is not stored or weight.dtype is not stored or x.shape[-1] != size:
            raise ValueError(
                f"x is {tuple(x.shape)} {x.dtype} and the weight is now {weight.dtype}; expected (…, {size}) {stored}"
            )
        x = x.contiguous()
        y, rows = torch.empty_like(x), x.numel() // size
        kernel(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, size, epsilon, weight_offset_one)
        return y

    return rms_norm


def compiled_silu(dtype: torch.dtype) -> Operation | None:
    """SiLU, x·sigmoid(x) (Elfwing et al., arXiv 1702.03118), for float32; None for other dtypes.

    torch takes another path at the end of an array, so that a number's last bits depend on where it is. In bfloat16
    both paths round to the same.
    """
    if dtype != torch.float32:
        return None
    try:
        kernel = function("eddecode_silu_f32", c_void_p, c_void_p, c_int64)
    except UnavailableError:
        return None

    def silu(x: Tensor) -> Tensor:
        if x.dtype is not torch.float32:
            raise ValueError(
                f"x is {x.dtype}; expected torch.float32: a model must not be converted while it decodes"
            )
        x = x.contiguous()
        y = torch.empty_like(x)
        kernel(x.data_ptr(), y.data_ptr(), x.numel())
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
    if dtype not in _ATTENTION or device.type != "cpu":
        return False
    try:
        function(_ATTENTION[dtype], c_void_p)
    except UnavailableError:
        return False
    return True


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
    out = torch.empty(rows, tokens, heads, width, dtype=query.dtype)
    call = _Attention(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr(), key_start.data_ptr(), key_end.data_ptr(),
        rows, tokens, heads, kv_heads, size, width,
        query.stride(0), query.stride(1), query.stride(2),
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        torch.get_num_threads(), scale, softcap,
    )  # fmt: skip
    function(_ATTENTION[query.dtype], c_void_p)(byref(call))
    return out
