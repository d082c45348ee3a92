"""Triton: attention over fixed chunks of each row's own keys.

A row's keys are divided into chunks from its first one on. Within a chunk the softmax is accumulated block by block,
then the chunks are joined in order. That order depends on the row alone: neither on the other rows' lengths, nor on how
many queries one program serves, nor on whether the chunks are read by one program or by several.

Kernels with tiles of different sizes have to give the same bits. So weights are added up as integers: the order of a
sum of floats follows from how a tile lies over the threads. And the kernels are compiled without fused multiply-adds
(`enable_fp_fusion`), which a compiler forms in one kernel and not in another.
"""

# Triton compiles these functions: no annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: SIM108
from __future__ import annotations

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
WEIGHT_UNIT = tl.constexpr(2.0**24)  # steps of a weight, 0 … 1; a block of 64 of them is below 2^31


@triton.jit
def attend_chunk(
    x, k_ptr, v_ptr, first, last, start, end, scale, softcap,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, BT: tl.constexpr, CAPPED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """Softmax sums of queries x (ROWS, BD) over the keys first ≤ position < last, of which each sees start … end−1.

    Returns Σ weight · value (ROWS, BD), the largest score (ROWS,) and Σ weight (ROWS,), weights relative to it. A block
    of which a row sees nothing leaves the row's bits as they are.
    """
    tl.static_assert(BT <= 64)
    d, t = tl.arange(0, BD), tl.arange(0, BT)
    top = tl.full((ROWS,), -INF, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, BD), tl.float32)
    for block in range(first, last, BT):
        at = block + t
        inside = at < last
        k = tl.load(
            k_ptr + at[None, :].to(tl.int64) * D + d[:, None],
            mask=inside[None, :] & (d < D)[:, None],
            other=0.0,
        )
        if IEEE:
            score = tl.dot(x, k, input_precision="ieee") * scale
        else:
            score = tl.dot(x, k) * scale
        if CAPPED:
            score = softcap * (1.0 - 2.0 / (tl.exp(2.0 * (score / softcap)) + 1.0))  # c · tanh(score / c)
        seen = inside[None, :] & (at[None, :] >= start[:, None]) & (at[None, :] < end[:, None])
        score = tl.where(seen, score, -INF)
        higher = tl.maximum(top, tl.max(score, 1))
        base = tl.where(higher == -INF, 0.0, higher)
        weight = tl.exp(score - base[:, None])
        shrink = tl.exp(top - base)
        v = tl.load(
            v_ptr + at[:, None].to(tl.int64) * D + d[None, :],
            mask=inside[:, None] & (d < D)[None, :],
            other=0.0,
        )
        if IEEE:
            summed = tl.dot(weight, v, summed * shrink[:, None], input_precision="ieee")
        else:
            summed = tl.dot(weight.to(v.dtype), v, summed * shrink[:, None])
        steps = tl.sum((weight * WEIGHT_UNIT + 0.5).to(tl.int32), 1)
        total = total * shrink + steps.to(tl.float32) * (1.0 / WEIGHT_UNIT)
        top = higher
    return summed, top, total


@triton.jit
def joined(summed, top, total, more, more_top, more_total):
    """Two softmax sums as one; the first may be empty."""
    higher = tl.maximum(top, more_top)
    base = tl.where(higher == -INF, 0.0, higher)
    shrink, more_shrink = tl.exp(top - base), tl.exp(more_top - base)
    summed = summed * shrink[:, None] + more * more_shrink[:, None]
    return summed, higher, total * shrink + more_total * more_shrink


@triton.jit(do_not_specialize=["tokens"])
def attend(
    q_ptr, k_ptr, v_ptr, start_ptr, end_ptr, out_ptr, sums_ptr, tops_ptr, tokens,
    k_row, k_head, v_row, v_head, scale, softcap,
    H: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, BT: tl.constexpr,
    CHUNK: tl.constexpr, SINGLE: tl.constexpr, CAPPED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """One query token, the heads of one key head, one chunk of keys: program (token, key head, chunk).

    q (rows · tokens, H, D); keys and values (rows, HK, capacity, D) with strides. SINGLE, with one chunk in all: the
    result goes to out (rows · tokens, H, D); else sums (…, H, chunks, D) and tops (…, H, chunks, 2) are joined by
    `join_chunks`.
    """
    token, kv_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    R: tl.constexpr = H // HK
    start, end = tl.load(start_ptr + token), tl.load(end_ptr + token)
    first = (part * CHUNK).to(tl.int64)
    last = tl.minimum(end, first + CHUNK)
    if (first < end) & (last > start):
        d, g = tl.arange(0, BD), tl.arange(0, ROWS)
        head = kv_head * R + g
        at = (token * H + head)[:, None] * D + d[None, :]
        kept = (g < R)[:, None] & (d < D)[None, :]
        x = tl.load(q_ptr + at, mask=kept, other=0.0)
        row = (tl.program_id(0) // tokens).to(tl.int64)
        begin = first + tl.maximum(start - first, 0) // BT * BT  # blocks before it are not seen
        summed, top, total = attend_chunk(
            x, k_ptr + row * k_row + kv_head * k_head, v_ptr + row * v_row + kv_head * v_head, begin, last,
            tl.zeros((ROWS,), tl.int64) + start, tl.zeros((ROWS,), tl.int64) + end, scale, softcap,
            D, BD, ROWS, BT, CAPPED, IEEE,
        )  # fmt: skip
        if SINGLE:
            value = summed / total[:, None]
            tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=kept)
        else:
            place = (token * H + head) * tl.num_programs(2) + part
            tl.store(sums_ptr + place[:, None] * D + d[None, :], summed, mask=kept)
            tl.store(tops_ptr + place * 2, top, mask=g < R)
            tl.store(tops_ptr + place * 2 + 1, total, mask=g < R)


@triton.jit(do_not_specialize=["parts"])
def join_chunks(
    start_ptr, end_ptr, out_ptr, sums_ptr, tops_ptr, parts,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Join the chunks, `parts` at most, of one query token and head: program (token, head)."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, end = tl.load(start_ptr + token), tl.load(end_ptr + token)
    d = tl.arange(0, BD)
    top = tl.full((1,), -INF, tl.float32)
    total = tl.zeros((1,), tl.float32)
    summed = tl.zeros((1, BD), tl.float32)
    # Four at a time, so that their loads do not wait for one another.
    for part in tl.range(start // CHUNK, (end + CHUNK - 1) // CHUNK, loop_unroll_factor=4):
        place = (token * H + head) * parts + part + tl.zeros((1,), tl.int64)
        more = tl.load(sums_ptr + place[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
        summed, top, total = joined(
            summed, top, total, more, tl.load(tops_ptr + place * 2), tl.load(tops_ptr + place * 2 + 1)
        )
    out = out_ptr + (token * H + head) * D + d[None, :]
    tl.store(out, (summed / total[:, None]).to(out_ptr.dtype.element_ty), mask=(d < D)[None, :])


@triton.jit
def attend_tile(
    q_ptr, k_ptr, v_ptr, start_ptr, end_ptr, tiles_ptr, out_ptr, k_head, v_head, scale, softcap,
    H: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, RP: tl.constexpr, ROWS: tl.constexpr,
    BT: tl.constexpr, CHUNK: tl.constexpr, CAPPED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """Several query tokens of one text in a packed pass, over all of their keys: program (tile, key head).

    tiles (n, 3) int64: first token, number of tokens, and where the text's keys begin. A tile has ROWS // RP tokens at
    most; RP is the number of query heads of a key head, rounded up to a power of two.
    """
    tile, kv_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    R: tl.constexpr = H // HK
    token0 = tl.load(tiles_ptr + tile * 3)
    count = tl.load(tiles_ptr + tile * 3 + 1)
    origin = tl.load(tiles_ptr + tile * 3 + 2)
    d, g = tl.arange(0, BD), tl.arange(0, ROWS)
    token, head = token0 + g // RP, kv_head * R + g % RP
    there = (g // RP < count) & (g % RP < R)
    start = tl.load(start_ptr + token, mask=there, other=2**40)
    end = tl.load(end_ptr + token, mask=there, other=0)
    at = (token * H + head)[:, None] * D + d[None, :]
    kept = there[:, None] & (d < D)[None, :]
    x = tl.load(q_ptr + at, mask=kept, other=0.0)
    lowest, highest = tl.min(start, 0), tl.max(end, 0)
    top = tl.full((ROWS,), -INF, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, BD), tl.float32)
    for first in range(origin + (lowest - origin) // CHUNK * CHUNK, highest, CHUNK):
        begin = first + tl.maximum(lowest - first, 0) // BT * BT
        more, more_top, more_total = attend_chunk(
            x, k_ptr + kv_head * k_head, v_ptr + kv_head * v_head, begin, tl.minimum(highest, first + CHUNK),
            start, end, scale, softcap, D, BD, ROWS, BT, CAPPED, IEEE,
        )  # fmt: skip
        summed, top, total = joined(summed, top, total, more, more_top, more_total)
    total = tl.where(there, total, 1.0)
    tl.store(out_ptr + at, (summed / total[:, None]).to(out_ptr.dtype.element_ty), mask=kept)
