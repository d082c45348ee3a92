"""x·Wᵀ + b for the few rows of a decode step, on the CPU: weights as they are, sums in float32.

A decode step reads every weight once, so it lasts as long as the reading. The compiled product reads at what the
memory gives, leaves the weights where and as they are, hands out float32 straight from bfloat16 weights, and gives a
row the same bits whatever else is in the batch. Where there is no compiler, `linear_for` says so by returning None.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from eddecode_kernels.jit import library, library_path, write_atomically
from eddecode_kernels.types import UnavailableError

_NAMES = {
    (torch.float32, torch.float32): "eddecode_linear_f32_f32",
    (torch.bfloat16, torch.float32): "eddecode_linear_bf16_f32",
    (torch.bfloat16, torch.bfloat16): "eddecode_linear_bf16_bf16",
}
_TYPES = (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64)

COLD_BYTES = 64 << 20  # more than a cache holds: in a decode step every weight comes from memory
MUST_GAIN = {1: 1.05, 8: 1.05, 64: 0.7}
"""Rows → the least ratio of the library's time to the compiled product's. A decode step has few rows; but where the
processor has matrix units that the compiled product does not use, a sweep's large batches must not lose by it."""
ROUNDS = 7

Linear = Callable[[Tensor], Tensor]


def linear_for(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear | None:
    """The compiled product with one weight matrix, or None where it does not apply.

    Args:
        weight: (N, K) float32 or bfloat16, contiguous, on the CPU. The function returned holds on to it.
        bias: (N,) any float dtype, or None.
        dtype: of the result: the weight's, or float32.

    Returns:
        A function from (…, K), of the weight's dtype, to (…, N) of `dtype`.
    """
    name = _NAMES.get((weight.dtype, dtype))
    if name is None or weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    try:
        compiled: Any = getattr(library(), name)
    except UnavailableError:
        return None
    compiled.argtypes, compiled.restype = _TYPES, None
    n, k = weight.shape
    bias32 = None if bias is None else bias.detach().float().contiguous()
    bias_at = None if bias32 is None else bias32.data_ptr()

    stored = weight.dtype

    def linear(x: Tensor, _alive: tuple[Tensor, Tensor | None] = (weight, bias32)) -> Tensor:
        if x.dtype is not stored or weight.dtype is not stored or x.shape[-1] != k:
            raise ValueError(
                f"x is {tuple(x.shape)} {x.dtype} and the weights are now {weight.dtype}; expected (…, {k}) {stored}: "
                "a model must not be converted while it decodes"
            )
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], n, dtype=dtype)
        compiled(
            weight.data_ptr(),
            x.data_ptr(),
            bias_at,
            y.data_ptr(),
            n,
            k,
            x.numel() // k,
            torch.get_num_threads(),
        )
        return y

    return linear


@cache
def pays(dtype: torch.dtype) -> bool:
    """Whether the compiled product beats torch's here, measured once per machine and remembered beside the library."""
    if linear_for(torch.zeros(1, 1, dtype=dtype), None, dtype) is None:
        return False
    note = library_path().with_suffix(f".{str(dtype).removeprefix('torch.')}.json")
    try:
        return bool(json.loads(note.read_text())["pays"])
    except (OSError, ValueError, KeyError, TypeError):
        ratios = _ratios(dtype)
    enough = all(ratios[str(rows)] > least for rows, least in MUST_GAIN.items())
    verdict = {"torch_over_compiled": ratios, "pays": enough}
    with contextlib.suppress(OSError):
        write_atomically(note, json.dumps(verdict))
    return bool(verdict["pays"])


def _ratios(dtype: torch.dtype) -> dict[str, float]:
    """Processor time of torch over that of the compiled product, by rows, in turn over cold weights: the least of each.

    On one thread, and not by the clock: on a busy machine two threads mostly measure how long they wait for each other,
    and what a neighbour does to the memory only ever adds.
    """
    weights = [
        torch.ones(1024, 1024, dtype=dtype) for _ in range(COLD_BYTES // (1024 * 1024 * dtype.itemsize))
    ]
    compiled = [linear for w in weights if (linear := linear_for(w, None, dtype)) is not None]
    ratios = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for rows in MUST_GAIN:
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
        ratios[str(rows)] = min(times[0]) / min(times[1])
    torch.set_num_threads(threads)
    return ratios
