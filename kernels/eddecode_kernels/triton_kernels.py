"""The Triton kernels of sampling. Importing this module needs triton; `sample_triton` does it on first use.

A row is split into blocks, one program each, so that a single row uses the whole chip. The filters are a threshold on
the contrast. It is found without a sort, by bisection over the float's bits: each sweep over the row computes the exact
weight above CUTS candidates. (CUTS + 1)^8 > 2^32, so that a fixed number of sweeps ends at a single float on any
distribution. A sweep is one launch: its programs add up what the blocks found in the last one, always in the same
order, and so arrive at the same candidates.
"""

# Triton compiles these functions: no annotations, and NaN is tested by x != x.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: PLR0124, SIM102
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from eddecode_kernels import types

INTERPRETED = bool(knobs.runtime.interpret)
SWEEPS = 9  # launches
NO_CANDIDATES = tl.constexpr(types.NO_CANDIDATES)
NON_FINITE_CONTRAST = tl.constexpr(types.NON_FINITE_CONTRAST)
NON_FINITE_LOGITS = tl.constexpr(types.NON_FINITE_LOGITS)
INF = tl.constexpr(float("inf"))
LAST = tl.constexpr(2**31 - 1)  # larger than any id


@triton.jit(do_not_specialize_on_alignment=["weight_ptr"])
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
def forbid(c_ptr, width, ids_ptr, until_ptr, counter_ptr, IDS: tl.constexpr, BLOCK: tl.constexpr):
    """Mask up to IDS ids of a row, each as long as the row's counter is below its limit: program (row); −1 is none."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + row * IDS + i, mask=i < IDS, other=-1)
    until = tl.load(until_ptr + row * IDS + i, mask=i < IDS, other=0)
    masked = (ids >= 0) & (ids < width) & (tl.load(counter_ptr + row) < until)
    tl.store(c_ptr + row * width + ids, tl.full([BLOCK], -INF, tl.float32), mask=masked)


@triton.jit
def plausible_peak(c_ptr, base_ptr, base_stride, width, log_tau_ptr, peaks_ptr, parts, BLOCK: tl.constexpr):
    """The largest base logit of a block, of the ids that may be sampled: program (row, block)."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(log_tau_ptr + row) > -INF:
        ids = block * BLOCK + tl.arange(0, BLOCK)
        c = tl.load(c_ptr + row * width + ids, mask=ids < width, other=-INF)
        base = tl.load(base_ptr + row * base_stride + ids, mask=ids < width, other=-INF)
        tl.store(peaks_ptr + row * parts + block, tl.max(tl.where(c == -INF, -INF, base), 0))


@triton.jit
def row_max(values_ptr, row, parts, PARTS: tl.constexpr):
    """The largest of one float per block."""
    lanes = tl.arange(0, PARTS)
    return tl.max(tl.load(values_ptr + row * parts + lanes, mask=lanes < parts, other=-INF), 0)


@triton.jit
def row_sum(values_ptr, row, parts, PARTS: tl.constexpr):
    """The sum of one float64 per block, always in the same order."""
    lanes = tl.arange(0, PARTS)
    return tl.sum(tl.load(values_ptr + row * parts + lanes, mask=lanes < parts, other=0.0), 0)


@triton.jit
def contrast_part(
    c_ptr, base_ptr, base_stride, width, log_tau_ptr, peaks_ptr, tops_ptr, sums_ptr, nans_ptr, parts,
    PLAUSIBLE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest contrast of a block, Σ exp(c − largest), and how many are NaN: program (row, block).

    With PLAUSIBLE, ids whose base logit is more than −log τ below the row's peak are masked first.
    """
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    c_ptrs = c_ptr + row * width + ids
    c = tl.load(c_ptrs, mask=ids < width, other=-INF)
    if PLAUSIBLE:
        log_tau = tl.load(log_tau_ptr + row)
        if log_tau > -INF:
            peak = row_max(peaks_ptr, row, parts, PARTS)
            base = tl.load(base_ptr + row * base_stride + ids, mask=ids < width, other=-INF)
            c = tl.where(base < peak + log_tau, -INF, c)
            tl.store(c_ptrs, c, mask=ids < width)
    top = tl.max(tl.where(c == c, c, -INF), 0)
    shift = tl.where((top > -INF) & (top < INF), top, 0.0)
    tl.store(tops_ptr + row * parts + block, top)
    tl.store(sums_ptr + row * parts + block, tl.sum(tl.exp(c - shift).to(tl.float64), 0))
    tl.store(nans_ptr + row * parts + block, tl.sum((c != c).to(tl.int32), 0).to(tl.float32))


@triton.jit
def scale_of(temperature):
    """The factor of c − top; 0 for a greedy row."""
    positive = temperature > 0
    return tl.where(positive, tl.minimum(1.0 / tl.where(positive, temperature, 1.0), 3.4e38), 0.0)


@triton.jit
def candidates(lower, upper, CUTS: tl.constexpr):
    """CUTS keys between two keys."""
    return lower + (upper - lower) * (tl.arange(0, CUTS).to(tl.int64) + 1) // (CUTS + 1)


@triton.jit
def narrowed(bounds_ptr, weights_ptr, row, parts, target, CUTS: tl.constexpr, PARTS: tl.constexpr):
    """The bounds (lower, upper) after a sweep: the weight above `upper` is less than the target, above `lower` not."""
    lower, upper = tl.load(bounds_ptr + row * 2), tl.load(bounds_ptr + row * 2 + 1)
    cuts = candidates(lower, upper, CUTS)
    lanes, column = tl.arange(0, PARTS), tl.arange(0, CUTS)
    weights = tl.load(
        weights_ptr + (row * parts + lanes[:, None]) * CUTS + column[None, :],
        mask=lanes[:, None] < parts,
        other=0.0,
    )
    kept = tl.sum(weights, 0) < target
    upper = tl.min(tl.where(kept, cuts, upper), 0)
    return tl.minimum(upper, tl.max(tl.where(kept, lower, cuts), 0)), upper


@triton.jit
def is_filtered(value_ptr, temperature, row, width, UNIT: tl.constexpr):
    """Whether a row has this filter: top-k (UNIT), or top-p."""
    value = tl.load(value_ptr + row)
    if UNIT:
        return (temperature > 0) & (value > 0) & (value < width)
    return (temperature > 0) & (value < 1)


@triton.jit(do_not_specialize=["first"])
def sweep(
    c_ptr, width, tops_ptr, temperature_ptr, value_ptr, masses_ptr, least_ptr,
    bounds_in_ptr, weights_in_ptr, bounds_ptr, weights_ptr, parts, first,
    UNIT: tl.constexpr, BLOCK: tl.constexpr, CUTS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One sweep of the search for a threshold: the weight of one block above CUTS candidates. Program (row, block).

    With UNIT every token weighs 1 and the target is k, else exp((c − top)·scale) and p times the mass that is kept.
    The first sweep (1, else 0) begins with what the filters before it leave.
    """
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    if is_filtered(value_ptr, temperature, row, width, UNIT):
        top = row_max(tops_ptr, row, parts, PARTS)
        scale = scale_of(temperature)
        target = tl.load(value_ptr + row).to(tl.float64)
        if not UNIT:
            target = target * row_sum(masses_ptr, row, parts, PARTS)
        if first == 1:
            least = tl.load(least_ptr + row)
            lower = order_key(least).to(tl.int64) - tl.where(least > -INF, 1, 0)
            upper = order_key(top).to(tl.int64)
        else:
            lower, upper = narrowed(bounds_in_ptr, weights_in_ptr, row, parts, target, CUTS, PARTS)
        if block == 0:
            tl.store(bounds_ptr + row * 2, lower)
            tl.store(bounds_ptr + row * 2 + 1, upper)
        cuts = candidates(lower, upper, CUTS)
        ids = block * BLOCK + tl.arange(0, BLOCK)
        c = tl.load(c_ptr + row * width + ids, mask=ids < width, other=-INF)
        e = tl.exp((c - top) * scale)
        if UNIT:
            e = tl.full([BLOCK], 1.0, tl.float32)
        e = tl.where(c > -INF, e, 0.0)
        above = order_key(c)[None, :] > cuts.to(tl.int32)[:, None]  # (CUTS, BLOCK)
        weights = tl.sum(tl.where(above, e[None, :], 0.0), 1).to(tl.float64)
        tl.store(weights_ptr + (row * parts + block) * CUTS + tl.arange(0, CUTS), weights)


@triton.jit
def kept_mass(
    c_ptr, width, tops_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, before_ptr,
    k_bounds_ptr, k_weights_ptr, p_bounds_ptr, p_weights_ptr, least_ptr, masses_ptr, parts,
    TOP_K: tl.constexpr, TOP_P: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr, CUTS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The threshold of a row, and the mass of one block from there on: program (row, block).

    TOP_K, TOP_P: that search has been done, and `before` holds the mass that top-p's was for. LAST: all filters are
    known; a greedy row keeps its largest.
    """
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    top, scale = row_max(tops_ptr, row, parts, PARTS), scale_of(temperature)
    key = order_key(top * 0.0 - INF).to(tl.int64)
    if TOP_K:
        if is_filtered(top_k_ptr, temperature, row, width, True):
            target = tl.load(top_k_ptr + row).to(tl.float64)
            _, key = narrowed(k_bounds_ptr, k_weights_ptr, row, parts, target, CUTS, PARTS)
    if TOP_P:
        if is_filtered(top_p_ptr, temperature, row, width, False):
            target = tl.load(top_p_ptr + row).to(tl.float64) * row_sum(before_ptr, row, parts, PARTS)
            _, key = narrowed(p_bounds_ptr, p_weights_ptr, row, parts, target, CUTS, PARTS)
    least = float_of_key(key.to(tl.int32))
    if LAST:
        min_p = tl.load(min_p_ptr + row)
        floor = top.to(tl.float64) + temperature.to(tl.float64) * tl.log(
            tl.where(min_p > 0, min_p, 1.0).to(tl.float64)
        )
        least = tl.where(min_p > 0, tl.maximum(least, floor.to(tl.float32)), least)
        least = tl.where(temperature > 0, least, top)
    if block == 0:
        tl.store(least_ptr + row, least)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    c = tl.load(c_ptr + row * width + ids, mask=ids < width, other=-INF)
    e = tl.where((c >= least) & (c > -INF), tl.exp((c - top) * scale), 0.0)
    tl.store(masses_ptr + row * parts + block, tl.sum(e.to(tl.float64), 0))


@triton.jit(do_not_specialize_on_alignment=["logprobs_ptr"])
def pick(
    c_ptr, width, tops_ptr, sums_ptr, nans_ptr, temperature_ptr, uniforms_ptr, least_ptr, masses_ptr, parts,
    tokens_ptr, logprobs_ptr, status_ptr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Inverse CDF in the order of the ids: the block, then the token in it. Program (row)."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, PARTS)
    tops = tl.load(tops_ptr + row * parts + lanes, mask=lanes < parts, other=-INF)
    top = tl.max(tops, 0)
    nans = tl.sum(tl.load(nans_ptr + row * parts + lanes, mask=lanes < parts, other=0.0), 0)
    status = tl.where(top == -INF, NO_CANDIDATES, 0)
    status = tl.where((nans > 0) | (top == INF), NON_FINITE_CONTRAST, status)
    tl.store(status_ptr + row, status)
    tl.store(tokens_ptr + row, 0)
    if status == 0:
        temperature, least = tl.load(temperature_ptr + row), tl.load(least_ptr + row)
        scale = scale_of(temperature)
        # Greedy: only the largest is kept, and the target of 0 takes the first of them.
        share = tl.where(temperature > 0, tl.load(uniforms_ptr + row), 0.0)
        masses = tl.load(masses_ptr + row * parts + lanes, mask=lanes < parts, other=0.0)
        target = share * tl.sum(masses, 0)
        reached = (masses > 0) & (tl.cumsum(masses, 0) > target)
        first = tl.min(tl.where(reached, lanes, LAST), 0)
        # Rounding can leave the target at the total: the last id that has a mass is taken.
        block = tl.where(first == LAST, tl.max(tl.where(masses > 0, lanes, 0), 0), first)
        before = tl.sum(tl.where(lanes < block, masses, 0.0), 0)
        ids = block * BLOCK + tl.arange(0, BLOCK)
        c = tl.load(c_ptr + row * width + ids, mask=ids < width, other=-INF)
        kept = (c >= least) & (c > -INF)
        e = tl.where(kept, tl.exp((c - top) * scale), 0.0).to(tl.float64)
        found = tl.min(tl.where((e > 0) & (before + tl.cumsum(e, 0) > target), ids, LAST), 0)
        token = tl.where(found == LAST, tl.max(tl.where(e > 0, ids, 0), 0), found)
        tl.store(tokens_ptr + row, token)
        sums = tl.load(sums_ptr + row * parts + lanes, mask=lanes < parts, other=0.0)
        plain = tl.sum(tl.where(tops > -INF, sums * tl.exp((tops - top).to(tl.float64)), 0.0), 0)
        tl.store(
            logprobs_ptr + row,
            (tl.load(c_ptr + row * width + token) - top.to(tl.float64) - tl.log(plain)).to(tl.float32),
        )


@triton.jit(do_not_specialize=["term"], do_not_specialize_on_alignment=["weight_ptr", "logprobs_ptr"])
def token_logprob(
    z_ptr, z_stride, blocks, weight_ptr, tops_ptr, sums_ptr, parts, tokens_ptr, logprobs_ptr, status_ptr, term,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Log-probability of the sampled token under the softmax of one model, the term of the contrast of that number."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, PARTS)
    tops = tl.load(tops_ptr + row * parts + lanes, mask=lanes < blocks, other=-INF)
    sums = tl.load(sums_ptr + row * parts + lanes, mask=lanes < blocks, other=0.0)
    top = tl.max(tops, 0)
    finite = (top > -INF) & (top < INF)
    scaled = sums * tl.exp((tops - tl.where(finite, top, 0.0)).to(tl.float64))
    total = tl.sum(tl.where(sums == sums, tl.where(finite, scaled, 0.0), sums), 0)
    bad = (total != total) | ((top == INF) & (tl.load(weight_ptr + row) != 0))
    tl.store(status_ptr + row, tl.where(bad, NON_FINITE_LOGITS + term, tl.load(status_ptr + row)))
    z = tl.load(z_ptr + row * z_stride + tl.load(tokens_ptr + row))
    normaliser = tl.where(finite, top.to(tl.float64) + tl.log(total), top.to(tl.float64))
    tl.store(logprobs_ptr + row, tl.where(z == -INF, -INF, z.to(tl.float64) - normaliser).to(tl.float32))
