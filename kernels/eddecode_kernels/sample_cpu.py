"""Contrast and sample on the CPU: passes tensors to the C++ as pointers."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_int64, c_void_p

import numpy as np
import torch
from torch import Tensor

from eddecode_kernels.jit import function
from eddecode_kernels.types import Forbidden, RawSample, SampleInputs


class _SampleCall(Structure):
    """The struct `EddecodeCall` of csrc/contrast_sample.cpp, field for field."""

    _fields_ = (
        *((name, c_int64) for name in ("terms", "rows", "width", "threads")),
        ("logits", POINTER(c_void_p)),
        ("widths", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        *(
            (name, c_void_p)
            for name in ("weights", "temperature", "top_k", "top_p", "min_p", "log_plausibility")
        ),
        *((name, c_void_p) for name in ("uniforms", "vocabulary", "forbidden_starts", "forbidden_ids")),
        *((name, c_void_p) for name in ("tokens", "logprobs", "status")),
    )


def contrast_and_sample(inputs: SampleInputs) -> RawSample:
    """Sample one token per row; see `eddecode.sampling.dispatch.contrast_and_sample`.

    Raises:
        UnavailableError: there is no C++ compiler.
    """
    kernel = function("eddecode_contrast_and_sample", c_void_p)
    logits = [_rows_contiguous(z) for z in inputs.logits]
    rows, terms, batch = inputs.rows, len(logits), logits[0].shape[0]
    floats = [_plain(x, torch.float32) for x in (inputs.weights, rows.temperature, rows.top_p, rows.min_p)]
    top_k, uniforms = _plain(rows.top_k, torch.int64), _plain(inputs.uniforms, torch.float64)
    # The logarithm is torch's, so that the plausibility mask is bit for bit the reference's.
    log_tau = _plain(rows.plausibility, torch.float32).log()
    vocabulary = None if inputs.vocabulary is None else _plain(inputs.vocabulary, torch.bool)
    starts, ids = _ragged(inputs.forbidden, batch) if inputs.forbidden else (None, None)
    tokens = torch.empty(batch, dtype=torch.int64)
    logprobs = torch.empty(terms + 1, batch, dtype=torch.float32)
    status = torch.empty(batch, dtype=torch.int32)
    call = _SampleCall(
        terms=terms,
        rows=batch,
        width=inputs.width,
        threads=torch.get_num_threads(),
        logits=(c_void_p * terms)(*(z.data_ptr() for z in logits)),
        widths=(c_int64 * terms)(*(z.shape[1] for z in logits)),
        strides=(c_int64 * terms)(*(z.stride(0) for z in logits)),
        weights=floats[0].data_ptr(),
        temperature=floats[1].data_ptr(),
        top_k=top_k.data_ptr(),
        top_p=floats[2].data_ptr(),
        min_p=floats[3].data_ptr(),
        log_plausibility=log_tau.data_ptr(),
        uniforms=uniforms.data_ptr(),
        vocabulary=None if vocabulary is None else vocabulary.data_ptr(),
        forbidden_starts=None if starts is None else starts.ctypes.data,
        forbidden_ids=None if ids is None else ids.ctypes.data,
        tokens=tokens.data_ptr(),
        logprobs=logprobs.data_ptr(),
        status=status.data_ptr(),
    )
    kernel(byref(call))
    return RawSample(tokens, logprobs, status)


def _rows_contiguous(z: Tensor) -> Tensor:
    return z if z.stride(1) == 1 or z.shape[1] == 1 else z.contiguous()


def _plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to("cpu", dtype).contiguous()


def _ragged(
    forbidden: Forbidden, batch: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Ids by row as (B+1,) offsets and one flat array."""
    by_row: list[list[Sequence[int]]] = [[] for _ in range(batch)]
    for row, ids in forbidden:
        by_row[row].append(ids)
    flat = [np.asarray(ids, dtype=np.int64) for row in by_row for ids in row]
    counts = [sum(len(ids) for ids in row) for row in by_row]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return starts, np.concatenate(flat) if flat else np.zeros(0, np.int64)
