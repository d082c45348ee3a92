"""Triton: what goes row by row between the products of a decoder layer: norms, rotation, gates, copies, uniforms.

Every kernel adds up the parts of the product before it, in order. A row is one program's, so its bits are the same in
any batch. Numbers are rounded to the model's dtype where torch rounds them.

No kernel is compiled for a number of rows: that would take time whenever another number comes, and another compilation
need not give the same bits. So how far parts are apart follows from the number of programs.
"""

# Triton compiles these functions: no annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x, like_ptr):
    """x float32, rounded to the dtype that the pointer points at."""
    return x.to(like_ptr.dtype.element_ty).to(tl.float32)


@triton.jit
def product_at(
    parts_ptr, part_stride, bias_ptr, at, column, inside, like_ptr, SPLIT: tl.constexpr, BIAS: tl.constexpr
):
    """Numbers of a product: its parts, and the bias, added up and rounded."""
    x = tl.load(parts_ptr + at, mask=inside, other=0.0)
    for part in range(1, SPLIT):
        x += tl.load(parts_ptr + tl.cast(part, tl.int64) * part_stride + at, mask=inside, other=0.0)
    if BIAS:
        x += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    return rounded(x, like_ptr)


@triton.jit
def normed(x, rms, w, like_ptr, OFFSET: tl.constexpr, LATE: tl.constexpr):
    """x / rms · w (or · (1 + w)), rounded once at the end (LATE), or before the weight too."""
    y = x * rms
    if OFFSET:
        w = 1.0 + w
    if LATE:
        return rounded(y * w, like_ptr)
    return rounded(rounded(y, like_ptr) * w, like_ptr)


@triton.jit
def add_and_norm(
    hidden_ptr, parts_ptr, bias_ptr, after_ptr, weight_ptr, out_ptr, size, epsilon, scale,
    SPLIT: tl.constexpr, BIAS: tl.constexpr, AFTER: tl.constexpr, SCALED: tl.constexpr, NORM: tl.constexpr,
    OFFSET: tl.constexpr, LATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """hidden += scale · norm_after(product), then out = norm(hidden): program (row). SPLIT 0: nothing is added."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < size
    x = tl.load(hidden_ptr + row * size + i, mask=inside, other=0.0).to(tl.float32)
    if SPLIT > 0:
        part_stride = tl.num_programs(0).to(tl.int64) * size
        y = product_at(parts_ptr, part_stride, bias_ptr, row * size + i, i, inside, hidden_ptr, SPLIT, BIAS)
        if AFTER:
            rms = tl.rsqrt(tl.sum(y * y, 0) / size + epsilon)
            w = tl.load(after_ptr + i, mask=inside, other=0.0).to(tl.float32)
            y = normed(y, rms, w, hidden_ptr, OFFSET, LATE)
        if SCALED:
            y = rounded(y * scale, hidden_ptr)
        x = rounded(x + y, hidden_ptr)
        tl.store(hidden_ptr + row * size + i, x.to(hidden_ptr.dtype.element_ty), mask=inside)
    if NORM:
        rms = tl.rsqrt(tl.sum(x * x, 0) / size + epsilon)
        w = tl.load(weight_ptr + i, mask=inside, other=0.0).to(tl.float32)
        y = normed(x, rms, w, hidden_ptr, OFFSET, LATE)
        tl.store(out_ptr + row * size + i, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def rotate_and_write(
    parts_ptr, bias_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, q_ptr, k_ptr, v_ptr,
    tokens, k_row, k_head, v_row, v_head, epsilon,
    H: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr, SPLIT: tl.constexpr,
    BIAS: tl.constexpr, NORM: tl.constexpr, OFFSET: tl.constexpr, LATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one token: program (token, head), heads in the order of queries, keys, values.

    The product (SPLIT, rows · tokens, (H + 2·HK)·D) becomes q (rows · tokens, H, D), normalized and rotated; keys and
    values go to the cache (rows, HK, capacity, D) at the token's position. NORM: 1 normalizes every head by itself, 2
    all heads of the queries, or of the keys, together. The first half of the ROTARY numbers is paired with the second.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    WIDTH: tl.constexpr = (H + 2 * HK) * D
    HALF: tl.constexpr = ROTARY // 2
    i = tl.arange(0, BLOCK)
    inside = i < D
    base, part_stride = token * WIDTH, tl.num_programs(0).to(tl.int64) * WIDTH
    x = product_at(
        parts_ptr, part_stride, bias_ptr, base + head * D + i, head * D + i, inside, q_ptr, SPLIT, BIAS
    )
    at = tl.load(positions_ptr + token)
    row = (tl.program_id(0) // tokens).to(tl.int64)
    if head < H + HK:
        other = tl.where(i < HALF, i + HALF, tl.where(i < ROTARY, i - HALF, i))
        if NORM > 0 or ROTARY > 0:
            y = product_at(
                parts_ptr, part_stride, bias_ptr, base + head * D + other, head * D + other, inside, q_ptr, SPLIT, BIAS
            )  # fmt: skip
        if NORM > 0:
            is_key = (head >= H).to(tl.int64)
            if NORM == 1:
                square = tl.sum(x * x, 0) / D
                column, partner = i, other
            else:
                first, count = is_key * H, H + is_key * (HK - H)
                squares = tl.zeros(
                    [8, BLOCK], tl.float32
                )  # eight heads at a time, to wait for memory less often
                for some in range(0, H if H > HK else HK, 8):
                    each = some + tl.arange(0, 8)
                    at_each = (first + each[:, None]) * D + i[None, :]
                    there = (each < count)[:, None] & inside[None, :]
                    z = product_at(
                        parts_ptr, part_stride, bias_ptr, base + at_each, at_each, there, q_ptr, SPLIT, BIAS
                    )
                    squares += z * z
                square = tl.sum(tl.sum(squares, 0), 0) / (count * D)
                column, partner = (head - first) * D + i, (head - first) * D + other
            rms = tl.rsqrt(square + epsilon)
            if head < H:
                w = tl.load(q_norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
                w_other = tl.load(q_norm_ptr + partner, mask=inside, other=0.0).to(tl.float32)
            else:
                w = tl.load(k_norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
                w_other = tl.load(k_norm_ptr + partner, mask=inside, other=0.0).to(tl.float32)
            x = normed(x, rms, w, q_ptr, OFFSET, LATE)
            y = normed(y, rms, w_other, q_ptr, OFFSET, LATE)
        if ROTARY > 0:
            turned = i < ROTARY
            c = tl.load(cos_ptr + token * ROTARY + i, mask=turned, other=1.0).to(tl.float32)
            s = tl.load(sin_ptr + token * ROTARY + i, mask=turned, other=0.0).to(tl.float32)
            x = x * c + tl.where(i < HALF, -y, y) * s
    value = x.to(q_ptr.dtype.element_ty)
    if head < H:
        tl.store(q_ptr + (token * H + head) * D + i, value, mask=inside)
    elif head < H + HK:
        tl.store(k_ptr + row * k_row + (head - H) * k_head + at * D + i, value, mask=inside)
    else:
        tl.store(v_ptr + row * v_row + (head - H - HK) * v_head + at * D + i, value, mask=inside)


@triton.jit
def gate(
    parts_ptr, bias_ptr, out_ptr, size,
    SPLIT: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = activation(gate) · up of a product (SPLIT, rows, 2·size): program (row, block)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    base, part_stride = row * 2 * size, tl.num_programs(0).to(tl.int64) * 2 * size
    g = product_at(parts_ptr, part_stride, bias_ptr, base + i, i, inside, out_ptr, SPLIT, BIAS)
    u = product_at(parts_ptr, part_stride, bias_ptr, base + size + i, size + i, inside, out_ptr, SPLIT, BIAS)
    if GELU:
        inner = 1.5957691216057308 * (g + 0.044715 * g * g * g)  # 2·√(2/π)
        a = g * tl.sigmoid(inner)  # ½(1 + tanh(x)) = sigmoid(2x)
    else:
        a = g * tl.sigmoid(g)
    tl.store(out_ptr + row * size + i, (rounded(a, out_ptr) * u).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def copy_blocks(table_ptr, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Copy stretches of memory: program (entry, head, block).

    table (n, 6) int64: addresses from and to of the first head, how many numbers a head has, numbers between heads from
    and to, and how many heads. A number has BYTES; with 16, addresses are multiples of them.
    """
    entry = table_ptr + tl.program_id(0) * 6
    head = tl.program_id(1).to(tl.int64)
    source = tl.load(entry) + head * tl.load(entry + 3) * BYTES
    target = tl.load(entry + 1) + head * tl.load(entry + 4) * BYTES
    count = tl.load(entry + 2)
    if BYTES == 16:
        count = count * 4  # of four bytes each
    i = tl.program_id(2).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (i < count) & (head < tl.load(entry + 5))
    if BYTES == 2:
        values = tl.load(source.to(tl.pointer_type(tl.int16)) + i, mask=inside)
        tl.store(target.to(tl.pointer_type(tl.int16)) + i, values, mask=inside)
    elif BYTES == 4:
        values = tl.load(source.to(tl.pointer_type(tl.int32)) + i, mask=inside)
        tl.store(target.to(tl.pointer_type(tl.int32)) + i, values, mask=inside)
    else:  # a compiler that knows that addresses divide by 16 moves so much at once
        values = tl.load(tl.multiple_of(source.to(tl.pointer_type(tl.int32)), 16) + i, mask=inside)
        tl.store(tl.multiple_of(target.to(tl.pointer_type(tl.int32)), 16) + i, values, mask=inside)


@triton.jit(do_not_specialize=["count"])
def philox_uniforms(keys_ptr, positions_ptr, out_ptr, count, BLOCK: tl.constexpr):
    """Uniforms in [0, 1), float64, of the positions of random streams: `eddecode.sampling.rng`, bit for bit.

    keys (n, 2) int64, 32-bit words; positions (n,) int64.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    position = tl.load(positions_ptr + i, mask=inside, other=0)
    LOW: tl.constexpr = 0xFFFFFFFF
    k0 = tl.load(keys_ptr + 2 * i, mask=inside, other=0).to(tl.uint64, bitcast=True)
    k1 = tl.load(keys_ptr + 2 * i + 1, mask=inside, other=0).to(tl.uint64, bitcast=True)
    wide = position.to(tl.uint64, bitcast=True)
    x0, x1 = wide & LOW, wide >> 32
    x2, x3 = wide ^ wide, wide ^ wide
    for _ in range(10):
        p0, p2 = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0, x1, x2, x3 = (p2 >> 32) ^ x1 ^ k0, p2 & LOW, (p0 >> 32) ^ x3 ^ k1, p0 & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    bits = ((x0 << 32) | x1) >> 11
    tl.store(out_ptr + i, bits.to(tl.float64) * 1.1102230246251565e-16, mask=inside)
