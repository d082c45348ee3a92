"""The Triton kernels themselves. Importing this module needs triton; `sample_triton` does it on first use.

The filters are a threshold on the contrast. It is found without a sort, by bisection over the float's bits: each sweep
over the row computes the exact weight above CUTS candidates. (CUTS + 1)^8 > 2^32, so that a fixed number of sweeps ends
at a single float on any distribution.
"""

# Triton compiles these functions: no annotations, and NaN is tested by x != x.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: PLR0124
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from eddecode_kernels import types

INTERPRETED = bool(knobs.runtime.interpret)
SWEEPS = tl.constexpr(9)
NO_CANDIDATES = tl.constexpr(types.NO_CANDIDATES)
NON_FINITE_CONTRAST = tl.constexpr(types.NON_FINITE_CONTRAST)
NON_FINITE_LOGITS = tl.constexpr(types.NON_FINITE_LOGITS)
INF = tl.constexpr(float("inf"))
LAST = tl.constexpr(2**31 - 1)  # larger than any id


@triton.jit
def add_term(
    z_ptr, z_stride, z_width, weight_ptr, contrast_ptr, width, vocabulary_ptr, tops_ptr, sums_ptr, parts,
    FIRST: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one model: its part of the softmax sum, and its term of the contrast."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(z_ptr + row * z_stride + ids, mask=ids < z_width, other=-INF)
    top = tl.max(z, 0)
    finite = (top > -INF) & (top < INF)
    e = tl.where(finite, tl.exp(z - tl.where(finite, top, 0.0)), 0.0)
    e = tl.where(z == z, e, float("nan"))
    tl.store(tops_ptr + row * parts + block, top)
    tl.store(sums_ptr + row * parts + block, tl.sum(e.to(tl.float64), 0))

    inside = ids < width
    c_ptrs = contrast_ptr + row * width + ids
    if FIRST:
        c = tl.zeros([BLOCK], tl.float32)
        if MASKED:
            allowed = tl.load(vocabulary_ptr + ids, mask=inside, other=0)
            c = tl.where(allowed != 0, c, -INF)
    else:
        c = tl.load(c_ptrs, mask=inside, other=-INF)
    weight = tl.load(weight_ptr + row)
    term = tl.where(weight != 0, z, 0.0)
    masked = (c == -INF) | (term == -INF)
    tl.store(c_ptrs, tl.where(masked, -INF, c + weight * term), mask=inside)


@triton.jit
def order_key(x):
    """An int32 that sorts like the float."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def float_of_key(key):
    """The inverse of `order_key`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def edge(
    c_ptr, width, top, scale, lower, target, UNIT: tl.constexpr, BLOCK: tl.constexpr, CUTS: tl.constexpr
):
    """The smallest float whose key exceeds `lower` (int64) with less than `target` of weight strictly above it.

    It is a value of the row, or next to `lower` if everything above does not reach the target.

    With UNIT every token weighs 1, else exp((c − top)·scale).
    """
    # There is less than the target above `upper`. Above `lower` there is not, or it is never tested:
    upper = order_key(top).to(tl.int64)
    steps = tl.arange(0, CUTS).to(tl.int64) + 1
    for _ in range(SWEEPS):
        cuts = lower + (upper - lower) * steps // (CUTS + 1)
        weights = tl.zeros([CUTS], tl.float64)
        for start in range(0, width, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            c = tl.load(c_ptr + ids, mask=ids < width, other=-INF)
            e = tl.exp((c - top) * scale)
            if UNIT:
                e = tl.full([BLOCK], 1.0, tl.float32)
            e = tl.where(c > -INF, e, 0.0)
            above = order_key(c)[None, :] > cuts.to(tl.int32)[:, None]  # (CUTS, BLOCK)
            weights += tl.sum(tl.where(above, e[None, :], 0.0), 1).to(tl.float64)
        kept = weights < target
        upper = tl.min(tl.where(kept, cuts, upper), 0)
        lower = tl.minimum(upper, tl.max(tl.where(kept, lower, cuts), 0))
    return float_of_key(upper.to(tl.int32))


@triton.jit
def mass_from(c_ptr, width, top, scale, least, BLOCK: tl.constexpr):
    """Σ exp((c − top)·scale) over the tokens with c >= least, float64."""
    total = tl.zeros([], tl.float64)
    for start in range(0, width, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        c = tl.load(c_ptr + ids, mask=ids < width, other=-INF)
        e = tl.where((c >= least) & (c > -INF), tl.exp((c - top) * scale), 0.0)
        total += tl.sum(e.to(tl.float64), 0)
    return total


@triton.jit
def mask_implausible(c_ptr, base_ptr, width, log_tau, BLOCK: tl.constexpr):
    """Mask the ids whose base logit is more than −log τ below the largest of those that may be sampled."""
    peak = -INF
    for start in range(0, width, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        c = tl.load(c_ptr + ids, mask=ids < width, other=-INF)
        base = tl.load(base_ptr + ids, mask=ids < width, other=-INF)
        peak = tl.maximum(peak, tl.max(tl.where(c == -INF, -INF, base), 0))
    for start in range(0, width, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        base = tl.load(base_ptr + ids, mask=ids < width, other=-INF)
        tl.store(
            c_ptr + ids, tl.full([BLOCK], -INF, tl.float32), mask=(ids < width) & (base < peak + log_tau)
        )
    tl.debug_barrier()  # threads read below what others have masked


@triton.jit
def sample(
    contrast_ptr, width, base_ptr, base_stride, temperature_ptr, top_p_ptr, min_p_ptr, top_k_ptr, log_tau_ptr,
    uniforms_ptr, tokens_ptr, logprobs_ptr, status_ptr, BLOCK: tl.constexpr, CUTS: tl.constexpr,
):  # fmt: skip
    """One row: plausibility mask, filters, inverse CDF in the order of the ids."""
    row = tl.program_id(0).to(tl.int64)
    c_ptr = contrast_ptr + row * width
    log_tau = tl.load(log_tau_ptr + row)
    if log_tau > -INF:
        mask_implausible(c_ptr, base_ptr + row * base_stride, width, log_tau, BLOCK)

    top, nans = -INF, 0
    for start in range(0, width, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        c = tl.load(c_ptr + ids, mask=ids < width, other=-INF)
        top = tl.maximum(top, tl.max(tl.where(c == c, c, -INF), 0))
        nans += tl.sum((c != c).to(tl.int32), 0)
    status = tl.where(top == -INF, NO_CANDIDATES, 0)
    status = tl.where((nans > 0) | (top == INF), NON_FINITE_CONTRAST, status)
    tl.store(status_ptr + row, status)
    tl.store(tokens_ptr + row, 0)
    if status == 0:
        temperature = tl.load(temperature_ptr + row)
        k, p, min_p = (
            tl.load(top_k_ptr + row),
            tl.load(top_p_ptr + row).to(tl.float64),
            tl.load(min_p_ptr + row),
        )
        scale = tl.where(
            temperature > 0, tl.minimum(1.0 / tl.where(temperature > 0, temperature, 1.0), 3.4e38), 0.0
        )
        least = tl.where(temperature > 0, -INF, top)
        if temperature > 0:
            lower = order_key(least).to(tl.int64)
            if (k > 0) & (k < width):
                least = edge(c_ptr, width, top, scale, lower, k.to(tl.float64), True, BLOCK, CUTS)
                lower = order_key(least).to(tl.int64) - 1
            if p < 1:
                target = p * mass_from(c_ptr, width, top, scale, least, BLOCK)
                least = edge(c_ptr, width, top, scale, lower, target, False, BLOCK, CUTS)
            if min_p > 0:
                floor = top.to(tl.float64) + temperature.to(tl.float64) * tl.log(min_p.to(tl.float64))
                least = tl.maximum(least, floor.to(tl.float32))
        # Greedy: only the largest is kept, and the target of 0 takes the first of them.
        share = tl.where(temperature > 0, tl.load(uniforms_ptr + row), 0.0)
        target = share * mass_from(c_ptr, width, top, scale, least, BLOCK)
        before = tl.zeros([], tl.float64)
        plain = tl.zeros([], tl.float64)
        token, last = LAST, 0
        for start in range(0, width, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            c = tl.load(c_ptr + ids, mask=ids < width, other=-INF)
            plain += tl.sum(tl.exp(c - top).to(tl.float64), 0)
            kept = (c >= least) & (c > -INF)
            e = tl.where(kept, tl.exp((c - top) * scale), 0.0).to(tl.float64)
            cumulated = before + tl.cumsum(e, 0)
            token = tl.minimum(token, tl.min(tl.where((e > 0) & (cumulated > target), ids, LAST), 0))
            last = tl.maximum(last, tl.max(tl.where(e > 0, ids, 0), 0))
            before = tl.max(cumulated, 0)
        token = tl.where(token == LAST, last, token)
        tl.store(tokens_ptr + row, token)
        tl.store(
            logprobs_ptr + row, (tl.load(c_ptr + token) - top.to(tl.float64) - tl.log(plain)).to(tl.float32)
        )


@triton.jit
def token_logprob(
    z_ptr, z_stride, blocks, weight_ptr, tops_ptr, sums_ptr, parts, tokens_ptr, logprobs_ptr, status_ptr,
    TERM: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Log-probability of the sampled token under one model's own softmax."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, PARTS)
    tops = tl.load(tops_ptr + row * parts + lanes, mask=lanes < blocks, other=-INF)
    sums = tl.load(sums_ptr + row * parts + lanes, mask=lanes < blocks, other=0.0)
    top = tl.max(tops, 0)
    finite = (top > -INF) & (top < INF)
    scaled = sums * tl.exp((tops - tl.where(finite, top, 0.0)).to(tl.float64))
    total = tl.sum(tl.where(sums == sums, tl.where(finite, scaled, 0.0), sums), 0)
    bad = (total != total) | ((top == INF) & (tl.load(weight_ptr + row) != 0))
    tl.store(status_ptr + row, tl.where(bad, NON_FINITE_LOGITS + TERM, tl.load(status_ptr + row)))
    z = tl.load(z_ptr + row * z_stride + tl.load(tokens_ptr + row))
    normaliser = tl.where(finite, top.to(tl.float64) + tl.log(total), top.to(tl.float64))
    tl.store(logprobs_ptr + row, tl.where(z == -INF, -INF, z.to(tl.float64) - normaliser).to(tl.float32))
