"""Triton: a mixture of experts: which experts a row goes to, their products in a fixed order, and the weighted sum.

A pair is a row and one of the experts that it goes to: pair row·k + i is the row's i-th expert, the most probable one
first. Pairs are put together by expert into tiles of a fixed number of places, so that every size is known without
the values; a tile that no pair needs ends at once. A pair's sums go in the order of `triton_linear`, whatever else is
in its tile, and a row adds up its own experts in the order of its pairs: its bits are the same in any batch.
"""

# Triton compiles these functions: no annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from eddecode_kernels.triton_linear import multiplied
from eddecode_kernels.triton_rows import product_at, rounded


@triton.jit
def route(
    parts_ptr, bias_ptr, like_ptr, experts_ptr, weights_ptr, gates_ptr,
    E: tl.constexpr, TOP_K: tl.constexpr, COLUMNS: tl.constexpr, SPLIT: tl.constexpr, BIAS: tl.constexpr,
    RENORMALIZED: tl.constexpr, ROUNDED: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The experts of a row and their weights, of the router's product (SPLIT, rows, COLUMNS): program (row).

    Softmax over the first E columns in float32, the TOP_K largest of it; of equal ones the first. RENORMALIZED: they
    are divided by their sum. ROUNDED: and rounded to the dtype of `like`. One column more is the shared expert's gate.
    """
    row = tl.program_id(0).to(tl.int64)
    part_stride = tl.num_programs(0).to(tl.int64) * COLUMNS
    i = tl.arange(0, BLOCK)
    z = product_at(parts_ptr, part_stride, bias_ptr, row * COLUMNS + i, i, i < E, like_ptr, SPLIT, BIAS)
    z = tl.where(i < E, z, -float("inf"))
    e = tl.exp(z - tl.max(z, 0))
    p = e / tl.sum(e, 0)
    slots = tl.arange(0, BK)
    chosen, values = tl.zeros([BK], tl.int32), tl.zeros([BK], tl.float32)
    left = tl.where(i < E, p, -1.0)
    for slot in range(TOP_K):
        top = tl.max(left, 0)
        which = tl.minimum(tl.min(tl.where(left == top, i, BLOCK), 0), E - 1)  # NaN equals nothing
        chosen = tl.where(slots == slot, which, chosen)
        values = tl.where(slots == slot, tl.sum(tl.where(i == which, p, 0.0), 0), values)
        left = tl.where(i == which, -2.0, left)
    if RENORMALIZED:
        values = values / tl.sum(values, 0)
    if ROUNDED:
        values = rounded(values, like_ptr)
    tl.store(experts_ptr + row * TOP_K + slots, chosen, mask=slots < TOP_K)
    tl.store(weights_ptr + row * TOP_K + slots, values, mask=slots < TOP_K)
    if COLUMNS > E:
        g = product_at(parts_ptr, part_stride, bias_ptr, row * COLUMNS + E, E, True, like_ptr, SPLIT, BIAS)
        tl.store(gates_ptr + row, rounded(tl.sigmoid(g), like_ptr))


@triton.jit
def chosen_in_block(experts_ptr, block, pairs, E: tl.constexpr, BLOCK: tl.constexpr, BE: tl.constexpr):
    """(BLOCK, BE) int32: 1 where a pair of a block goes to an expert."""
    p = block * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(experts_ptr + p, mask=p < pairs, other=E)
    lanes = tl.arange(0, BE)
    return ((expert[:, None] == lanes[None, :]) & (lanes < E)[None, :]).to(tl.int32)


@triton.jit(do_not_specialize=["pairs"])
def count_pairs(experts_ptr, counts_ptr, pairs, E: tl.constexpr, BLOCK: tl.constexpr, BE: tl.constexpr):
    """How many pairs of a block go to each expert: counts (blocks, BE) int32, program (block)."""
    block = tl.program_id(0)
    one = chosen_in_block(experts_ptr, block, pairs, E, BLOCK, BE)
    tl.store(counts_ptr + block * BE + tl.arange(0, BE), tl.sum(one, 0))


@triton.jit(do_not_specialize=["pairs", "blocks", "tiles"])
def group_pairs(
    experts_ptr, counts_ptr, order_ptr, tile_expert_ptr, tile_pairs_ptr, pairs, blocks, tiles,
    E: tl.constexpr, BM: tl.constexpr, ONE: tl.constexpr, BLOCK: tl.constexpr, BE: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Puts pairs into tiles of BM places, each of one expert, in the order of experts and pairs: program (block).

    order (tiles·BM) int32: the pair in a place; tile_expert (tiles): −1 for none; tile_pairs (tiles): how many
    places are taken, which are the first. ONE: all pairs are in one block, and counts are not read.
    """
    block = tl.program_id(0)
    one = chosen_in_block(experts_ptr, block, pairs, E, BLOCK, BE)
    lanes = tl.arange(0, BE)
    before = tl.zeros([BE], tl.int32)
    if ONE:
        total = tl.sum(one, 0)
    else:
        total = tl.zeros([BE], tl.int32)
        for some in range(0, blocks, 16):  # at a time, to wait for memory less often
            other = some + tl.arange(0, 16)[:, None]
            count = tl.load(counts_ptr + other * BE + lanes[None, :], mask=other < blocks, other=0)
            before += tl.sum(tl.where(other < block, count, 0), 0)
            total += tl.sum(count, 0)
    ends = tl.cumsum((total + BM - 1) // BM, 0)  # in tiles
    starts = ends - (total + BM - 1) // BM
    place = starts * BM + before
    at = tl.sum(one * (place[None, :] + tl.cumsum(one, 0) - 1), 1)
    p = block * BLOCK + tl.arange(0, BLOCK)
    tl.store(order_ptr + at, p, mask=p < pairs)
    if block == 0:
        for first in range(0, tiles, BT):
            t = first + tl.arange(0, BT)
            own = (t[:, None] >= starts[None, :]) & (t[:, None] < ends[None, :])  # (BT, BE)
            taken = tl.minimum(total[None, :] - (t[:, None] - starts[None, :]) * BM, BM)
            expert = tl.sum(tl.where(own, lanes[None, :] + 1, 0), 1) - 1
            tl.store(tile_expert_ptr + t, expert, mask=t < tiles)
            tl.store(tile_pairs_ptr + t, tl.sum(tl.where(own, taken, 0), 1), mask=t < tiles)


@triton.jit(do_not_specialize=["pairs"])
def expert_linear(
    x_ptr, w_ptr, order_ptr, tile_expert_ptr, tile_pairs_ptr, out_ptr, pairs, N, K, x_stride, K_PART,
    SHARED_BY: tl.constexpr, EVEN: tl.constexpr, IEEE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of one part of x · W[expert]ᵀ for pairs: out (SPLIT, pairs, N) float32; W is (E, N, K).

    SHARED_BY: pairs of one row of x. Else as `triton_linear.linear`, tile by tile of `group_pairs`.
    """
    tile = tl.program_id(1)
    expert = tl.load(tile_expert_ptr + tile)
    if expert < 0:
        return
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    part = tl.program_id(2)
    first = part * K_PART
    k = first + tl.arange(0, BK)
    place = tl.arange(0, BM)
    taken = place < tl.load(tile_pairs_ptr + tile)
    pair = tl.load(order_ptr + tile * BM + place, mask=taken, other=0).to(tl.int64)
    x_ptrs = x_ptr + (pair // SHARED_BY)[:, None] * x_stride + k[None, :]
    w_ptrs = w_ptr + expert.to(tl.int64) * N * K + n[None, :].to(tl.int64) * K + k[:, None]
    total = multiplied(x_ptrs, w_ptrs, taken[:, None], n, N, K, first, K_PART, EVEN, IEEE, BM, BN, BK)
    out_ptrs = out_ptr + (part.to(tl.int64) * pairs + pair[:, None]) * N + n[None, :]
    tl.store(out_ptrs, total, mask=taken[:, None] & (n < N)[None, :])


@triton.jit
def mix_experts(
    parts_ptr, weights_ptr, shared_ptr, shared_bias_ptr, gates_ptr, like_ptr, out_ptr, size,
    TOP_K: tl.constexpr, SPLIT: tl.constexpr, ROUNDED: tl.constexpr, SHARED_SPLIT: tl.constexpr,
    SHARED_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (rows, size) float32 = Σ weight · expert's product (SPLIT, rows·TOP_K, size): program (row, block).

    Added up in float32 in the order of the row's pairs, then rounded to the dtype of `like`, as is each term if
    weights are ROUNDED. Then gate · the shared expert's product (SHARED_SPLIT, rows, size) is added; 0: there is none.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    total = tl.zeros([BLOCK], tl.float32)
    shared_stride = tl.num_programs(0).to(tl.int64) * size
    part_stride = shared_stride * TOP_K
    for slot in range(TOP_K):
        at = (row * TOP_K + slot) * size + i
        y = product_at(parts_ptr, part_stride, parts_ptr, at, i, inside, like_ptr, SPLIT, False)
        y = y * tl.load(weights_ptr + row * TOP_K + slot)
        if ROUNDED:
            y = rounded(y, like_ptr)
        total += y
    total = rounded(total, like_ptr)
    if SHARED_SPLIT > 0:
        s = product_at(
            shared_ptr, shared_stride, shared_bias_ptr, row * size + i, i, inside, like_ptr, SHARED_SPLIT, SHARED_BIAS
        )  # fmt: skip
        total = rounded(total + rounded(tl.load(gates_ptr + row) * s, like_ptr), like_ptr)
    tl.store(out_ptr + row * size + i, total, mask=inside)
