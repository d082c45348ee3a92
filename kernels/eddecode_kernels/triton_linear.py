"""Triton: the matrix product whose order of sums is fixed, whatever the number of rows.

A sum over K goes in SPLIT parts, each in order. SPLIT depends on the shape of the weights alone, so that tiles may be
chosen by the number of rows and a row has the same bits in any batch. The parts are stored in float32; the kernel that
reads them next adds them up, in order.
"""

# Triton compiles these functions: no annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: SIM108
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiplied(
    x_ptrs, w_ptrs, row, n, N, K, first, K_PART,
    EVEN: tl.constexpr, IEEE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """(BM, BN) float32: K_PART numbers of every sum from `first` on, in order; pointers are those of the first BK."""
    total = tl.zeros((BM, BN), tl.float32)
    k = first + tl.arange(0, BK)
    for done in range(0, K_PART, BK):
        if EVEN:
            a = tl.load(x_ptrs, mask=row, other=0.0)
            b = tl.load(w_ptrs, eviction_policy="evict_first")
        else:
            inside = (done + tl.arange(0, BK) < K_PART) & (k + done < K)
            a = tl.load(x_ptrs, mask=row & inside[None, :], other=0.0)
            b = tl.load(
                w_ptrs, mask=inside[:, None] & (n < N)[None, :], other=0.0, eviction_policy="evict_first"
            )
        if IEEE:
            total = tl.dot(a, b, total, input_precision="ieee")
        else:
            total = tl.dot(a, b, total)
        x_ptrs += BK
        w_ptrs += BK
    return total


@triton.jit(do_not_specialize=["M"])  # one kernel for any number of rows
def linear(
    x_ptr, w_ptr, out_ptr, M, N, K, x_stride, K_PART,
    EVEN: tl.constexpr, IEEE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of one part of x (M, K) · Wᵀ (N, K): out (SPLIT, M, N) float32; part p sums K_PART numbers.

    EVEN: K divides by BK · SPLIT and N by BN, so that weights need no masks. IEEE: float32 products, no TF32.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    part = tl.program_id(2)
    first = part * K_PART
    k = first + tl.arange(0, BK)
    x_ptrs = x_ptr + m[:, None].to(tl.int64) * x_stride + k[None, :]
    w_ptrs = w_ptr + n[None, :].to(tl.int64) * K + k[:, None]
    row = m[:, None] < M
    total = multiplied(x_ptrs, w_ptrs, row, n, N, K, first, K_PART, EVEN, IEEE, BM, BN, BK)
    out_ptrs = out_ptr + (part.to(tl.int64) * M + m[:, None]) * N + n[None, :]
    tl.store(out_ptrs, total, mask=row & (n < N)[None, :])


@triton.jit(do_not_specialize=["M", "tokens", "start", "step"])
def add_low_rank(
    t_ptr, b_ptr, out_ptr, M, N, tokens, start, step,
    RANK: tl.constexpr, PARTS: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """Add t (M, r) · Bᵀ (N, r) to out (M, N) float32 in the rows start, start + step, …, each of `tokens` lines.

    t comes as PARTS parts in float32, whose sum is rounded to the dtype of B, as the factor's own product would be.
    The rank is added up BR numbers at a time: as one tile, a large one would not fit.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * 16 + tl.arange(0, 16)
    row = m // tokens
    changed = (m < M) & (row >= start) & ((row - start) % step == 0)
    change = tl.zeros((16, BN), tl.float32)
    for first in range(0, RANK, BR):
        r = first + tl.arange(0, BR)
        at = m[:, None].to(tl.int64) * RANK + r[None, :]
        kept = changed[:, None] & (r < RANK)[None, :]
        t = tl.zeros((16, BR), tl.float32)
        for part in range(PARTS):
            t += tl.load(t_ptr + tl.cast(part, tl.int64) * M * RANK + at, mask=kept, other=0.0)
        b = tl.load(
            b_ptr + n[None, :].to(tl.int64) * RANK + r[:, None],
            mask=(r < RANK)[:, None] & (n < N)[None, :],
            other=0.0,
        )
        if IEEE:
            change = tl.dot(t.to(b_ptr.dtype.element_ty), b, change, input_precision="ieee")
        else:
            change = tl.dot(t.to(b_ptr.dtype.element_ty), b, change)
    out_ptrs = out_ptr + m[:, None].to(tl.int64) * N + n[None, :]
    inside = changed[:, None] & (n < N)[None, :]
    before = tl.load(out_ptrs, mask=inside, other=0.0)
    tl.store(out_ptrs, before + change, mask=inside)
