"""What Triton does for a model's layers on a GPU: each function here launches one kernel.

They are operators of torch, so that a captured step can be recorded and checked like any other. Tests run them on a CPU
in Triton's interpreter (TRITON_INTERPRET=1), in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from eddecode_kernels.launching import launch_kernel, launches
from eddecode_kernels.triton_tiles import bucket_of, divides, part_size, shared_memory, split_of, tile_for

CHUNK = 256  # keys of a chunk: part of the result's bits
BLOCK = 64  # keys that are read at a time; divides CHUNK
FLOAT32_BLOCK = (
    16  # the same of large heads in float32: tensor cores do not multiply it, and registers hold a tile
)
TILE_ROWS = 64  # query rows of one program in a packed pass
WIDE_TILE_ROWS = 32  # the same of heads of more than 128 numbers: more would not fit into registers
SMALL_TILE_ROWS = 16  # the same where large tiles do not give the bits of a decode step
COPY_BLOCK = 2048
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MIN_CAPABILITY = (8, 0)

Function = TypeVar("Function", bound=Callable[..., None])
_library: Any = torch.library.Library("eddecode", "FRAGMENT")  # type: ignore[no-untyped-call]


def torch_operator(schema: str) -> Callable[[Function], Function]:
    """Defines an operator of torch, `torch.ops.eddecode.<name>`, implemented by the function below it."""

    def register(function: Function) -> Function:
        _library.define(schema)
        _library.impl(schema.split("(", maxsplit=1)[0], launches(function), "CompositeExplicitAutograd")
        return function

    return register


@cache
def kernels() -> Any:
    """The modules with the kernels, or None where triton is not installed."""
    try:
        from eddecode_kernels import (
            triton_attention,
            triton_experts,
            triton_kernels,
            triton_linear,
            triton_rows,
        )
    except ImportError:
        return None
    return {
        "attention": triton_attention,
        "experts": triton_experts,
        "linear": triton_linear,
        "rows": triton_rows,
        "interpreted": triton_kernels.INTERPRETED,
    }


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels can run for this device and dtype; on a CPU, in the interpreter only."""
    if dtype not in DTYPES or kernels() is None:
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= MIN_CAPABILITY
    return device.type == "cpu" and bool(kernels()["interpreted"]) and dtype == torch.float32


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number."""
    return 1 << max(number - 1, 0).bit_length()


# Products ----------------------------------------------------------------------------------------------------------


@torch_operator("linear(Tensor x, Tensor weight, Tensor(a!) out) -> ()")
def linear_into(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """x (M, K) · weightᵀ (N, K) in out.shape[0] parts: out (SPLIT, M, N) float32, contiguous."""
    rows, depth = x.shape
    columns, split = weight.shape[0], out.shape[0]
    tile = tile_for(bucket_of(rows), columns, depth, split, weight.dtype, shared_memory(weight.device))
    even = divides(columns, depth, split, tile.columns)
    grid = (-(-columns // tile.columns), -(-rows // tile.rows), split)
    launch_kernel(kernels()["linear"].linear, grid,
        x, weight, out, rows, columns, depth, x.stride(0), part_size(depth, split),
        EVEN=even, IEEE=weight.dtype == torch.float32, BM=tile.rows, BN=tile.columns, BK=tile.depth,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def product(x: Tensor, weight: Tensor, split: int | None = None) -> Tensor:
    """The parts (SPLIT, M, N) float32 of x (M, K) · weightᵀ (N, K); `split` is by default what the shape asks for."""
    parts = split_of(*weight.shape) if split is None else split
    out = torch.empty(parts, x.shape[0], weight.shape[0], dtype=torch.float32, device=x.device)
    torch.ops.eddecode.linear(x, weight, out)
    return out


@torch_operator("add_low_rank(Tensor t, Tensor b, Tensor(a!) out, int tokens, int start, int step) -> ()")
def add_low_rank(t: Tensor, b: Tensor, out: Tensor, tokens: int, start: int, step: int) -> None:
    """Add t · bᵀ to out (M, N) float32 in the rows start, start + step, …, each of `tokens` lines.

    t is (parts, M, r) float32, b (N, r), both contiguous.
    """
    parts, rows, rank = t.shape
    columns = b.shape[0]
    launch_kernel(kernels()["linear"].add_low_rank, (-(-columns // 64), -(-rows // 16)),
        t, b, out, rows, columns, tokens, start, step, RANK=rank, PARTS=parts,
        BR=min(64, max(16, power_of_two(rank))), BN=64, IEEE=b.dtype == torch.float32,
    )  # fmt: skip


# Between the products ----------------------------------------------------------------------------------------------


@torch_operator(
    "add_and_norm(Tensor(a!) hidden, Tensor? parts, Tensor? bias, Tensor? after, Tensor? weight, Tensor(b!)? out, "
    "float epsilon, float scale, bool offset, bool late) -> ()"
)
def add_and_norm(
    hidden: Tensor,
    parts: Tensor | None,
    bias: Tensor | None,
    after: Tensor | None,
    weight: Tensor | None,
    out: Tensor | None,
    epsilon: float,
    scale: float,
    offset: bool,
    late: bool,
) -> None:
    """hidden (M, d) += scale · norm(parts + bias; after), then out = norm(hidden; weight); what is None is left out."""
    rows, size = hidden.shape
    launch_kernel(kernels()["rows"].add_and_norm, (rows,),
        hidden, parts if parts is not None else hidden, bias if bias is not None else hidden,
        after if after is not None else hidden, weight if weight is not None else hidden,
        out if out is not None else hidden, size, epsilon, scale,
        SPLIT=0 if parts is None else parts.shape[0], BIAS=bias is not None, AFTER=after is not None,
        SCALED=scale != 1.0, NORM=weight is not None, OFFSET=offset, LATE=late, BLOCK=power_of_two(size),
        num_warps=8 if size > 1024 else 4,
    )  # fmt: skip


@torch_operator(
    "rotate_and_write(Tensor parts, Tensor? bias, Tensor? query_norm, Tensor? key_norm, Tensor cos, Tensor sin, "
    "Tensor positions, Tensor(a!) query, Tensor(b!) keys, Tensor(c!) values, int rotary, float epsilon, bool offset, "
    "bool late) -> ()"
)
def rotate_and_write(
    parts: Tensor,
    bias: Tensor | None,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rotary: int,
    epsilon: float,
    offset: bool,
    late: bool,
) -> None:
    """The product of q, k and v: query (M, H, D) normalized and rotated, keys and values into the cache.

    Args:
        parts: (SPLIT, M, (H + 2·HK)·D) float32, M = rows · tokens.
        bias: ((H + 2·HK)·D,) or None.
        query_norm, key_norm: (D,) for every head by itself, (H·D,) and (HK·D,) for all together, or None.
        cos, sin: (B, T, rotary) contiguous.
        positions: (B, T) int64, where keys and values are written.
        query: (M, H, D), written.
        keys, values: (rows, HK, capacity, D), the innermost two axes contiguous, written.
        rotary: how many numbers of a head are rotated; 0 is none.
        epsilon, offset, late: of the norms.
    """
    tokens, (_, heads, size), kv_heads = positions.shape[1], query.shape, keys.shape[1]
    norm = 0 if query_norm is None else 1 if query_norm.shape[0] == size else 2
    launch_kernel(kernels()["rows"].rotate_and_write, (query.shape[0], heads + 2 * kv_heads),
        parts, bias if bias is not None else parts, query_norm if query_norm is not None else parts,
        key_norm if key_norm is not None else parts, cos, sin, positions, query, keys, values,
        tokens, keys.stride(0), keys.stride(1), values.stride(0), values.stride(1), epsilon,
        H=heads, HK=kv_heads, D=size, ROTARY=rotary, SPLIT=parts.shape[0], BIAS=bias is not None, NORM=norm,
        OFFSET=offset, LATE=late, BLOCK=power_of_two(size), num_warps=1,
    )  # fmt: skip


@torch_operator("gate(Tensor parts, Tensor? bias, Tensor(a!) out, bool gelu) -> ()")
def gate(parts: Tensor, bias: Tensor | None, out: Tensor, gelu: bool) -> None:
    """out (M, F) = activation(gate) · up of a product (SPLIT, M, 2·F): SiLU, or GELU by its tanh form."""
    rows, size = out.shape
    block = min(1024, power_of_two(size))
    launch_kernel(kernels()["rows"].gate, (rows, -(-size // block)),
        parts, bias if bias is not None else parts, out, size,
        SPLIT=parts.shape[0], BIAS=bias is not None, GELU=gelu, BLOCK=block, num_warps=4,
    )  # fmt: skip


# Attention ---------------------------------------------------------------------------------------------------------


@torch_operator(
    "attend(Tensor query, Tensor keys, Tensor values, Tensor start, Tensor end, Tensor(a!) out, int capacity, "
    "float scale, float softcap) -> ()"
)
def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    start: Tensor,
    end: Tensor,
    out: Tensor,
    capacity: int,
    scale: float,
    softcap: float,
) -> None:
    """Attention of query (B·T, H, D) over keys start ≤ position < end (B, T) of their rows: out (B·T, H, D).

    Args:
        query, out: contiguous.
        keys, values: (rows, HK, capacity, D), the innermost two axes contiguous.
        start, end: int64, contiguous.
        capacity: no `end` is above it.
        scale: of the scores.
        softcap: c in c·tanh(score/c); 0 is none.
    """
    (count, heads, size), kv_heads = query.shape, keys.shape[1]
    parts = -(-capacity // CHUNK)
    wide, rows = max(16, power_of_two(size)), max(16, power_of_two(heads // kv_heads))
    if parts == 1:
        sums = tops = out
    else:
        sums = torch.empty(count, heads, parts, size, dtype=torch.float32, device=query.device)
        tops = torch.empty(count, heads, parts, 2, dtype=torch.float32, device=query.device)
    module = kernels()["attention"]
    launch_kernel(module.attend, (count, kv_heads, parts),
        query, keys, values, start, end, out, sums, tops, start.shape[1],
        keys.stride(0), keys.stride(1), values.stride(0), values.stride(1), scale, softcap,
        H=heads, HK=kv_heads, D=size, BD=wide, ROWS=rows, BT=_keys_at_once(wide, query.dtype), CHUNK=CHUNK,
        SINGLE=parts == 1, CAPPED=softcap != 0.0, IEEE=query.dtype == torch.float32,
        num_warps=_decode_warps(wide, rows), num_stages=1 if query.dtype == torch.float32 else 2,
        enable_fp_fusion=False,
    )  # fmt: skip
    if parts > 1:
        launch_kernel(module.join_chunks, (count, heads),
            start, end, out, sums, tops, parts, H=heads, D=size, BD=wide, CHUNK=CHUNK, num_warps=1,
            enable_fp_fusion=False,
        )  # fmt: skip


@torch_operator(
    "attend_packed(Tensor query, Tensor keys, Tensor values, Tensor start, Tensor end, Tensor tiles, Tensor(a!) out, "
    "float scale, float softcap) -> ()"
)
def attend_packed(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    start: Tensor,
    end: Tensor,
    tiles: Tensor,
    out: Tensor,
    scale: float,
    softcap: float,
) -> None:
    """As `attend`, for one row that holds several texts: bit for bit what `attend` gives each text in a row of its own.

    Args:
        query, out: (T, H, D).
        keys, values: (1, HK, capacity, D).
        start, end: (1, T) int64.
        tiles: (n, 3) int64: first token, number of tokens (at most `tile_tokens`), and where its text's keys begin.
        scale, softcap: see `attend`.
    """
    (_, heads, size), kv_heads = query.shape, keys.shape[1]
    wide, group = max(16, power_of_two(size)), power_of_two(heads // kv_heads)
    rows = max(_tile_rows(wide), group)
    warps = _decode_warps(wide, rows) if _small_attention else 4 if wide <= 64 else 8
    launch_kernel(kernels()["attention"].attend_tile, (tiles.shape[0], kv_heads),
        query, keys, values, start, end, tiles, out, keys.stride(1), values.stride(1), scale, softcap,
        H=heads, HK=kv_heads, D=size, BD=wide, RP=group, ROWS=rows, BT=_keys_at_once(wide, query.dtype), CHUNK=CHUNK,
        CAPPED=softcap != 0.0, IEEE=query.dtype == torch.float32,
        num_warps=warps, num_stages=2 if wide <= 128 and query.dtype != torch.float32 else 1,
        enable_fp_fusion=False,
    )  # fmt: skip


def tile_tokens(heads: int, kv_heads: int, size: int) -> int:
    """How many tokens of a text one program of `attend_packed` serves at most, for heads of `size` numbers."""
    group = power_of_two(heads // kv_heads)
    return max(_tile_rows(power_of_two(size)), group) // group


def use_small_attention_tiles() -> None:
    """From now on a packed pass multiplies tiles of the size that a decode step has; before any layer is compiled."""
    _small_attention.append(True)


_small_attention: list[bool] = []


def _keys_at_once(wide: int, dtype: torch.dtype) -> int:
    return FLOAT32_BLOCK if dtype == torch.float32 and wide >= 64 else BLOCK


def _decode_warps(wide: int, rows: int) -> int:
    return 2 if wide <= 128 and rows <= 16 else 4


def _tile_rows(wide: int) -> int:
    if _small_attention:
        return SMALL_TILE_ROWS
    return TILE_ROWS if wide <= 128 else WIDE_TILE_ROWS


# Rows --------------------------------------------------------------------------------------------------------------


@torch_operator("copy_blocks(Tensor table, int heads, int longest, int itemsize) -> ()")
def copy_blocks(table: Tensor, heads: int, longest: int, itemsize: int) -> None:
    """Copy stretches of memory on the device, of numbers of 2, 4 or 16 bytes; with 16, addresses divide by 16.

    Args:
        table: (n, 6) int64: addresses from and to of the first head, numbers of a head, numbers between heads from and
            to, and heads.
        heads: the most in the table.
        longest: the most numbers of a head in the table.
        itemsize: bytes of a number.
    """
    values = longest * 4 if itemsize == 16 else longest
    grid = (table.shape[0], heads, -(-values // COPY_BLOCK))
    launch_kernel(kernels()["rows"].copy_blocks, grid, table, BYTES=itemsize, BLOCK=COPY_BLOCK, num_warps=4)


@torch_operator("philox_uniforms(Tensor keys, Tensor positions, Tensor(a!) out) -> ()")
def philox_uniforms(keys: Tensor, positions: Tensor, out: Tensor) -> None:
    """Uniforms (n,) float64 of random streams with keys (n, 2) int64 at positions (n,) int64."""
    count = positions.shape[0]
    launch_kernel(
        kernels()["rows"].philox_uniforms,
        (-(-count // 64),),
        keys,
        positions,
        out,
        count,
        BLOCK=64,
        num_warps=2,
    )
