"""What Triton does for a mixture of experts on a GPU: operators of torch, as in `layers_triton`.

Nothing here waits for the device: tiles, places and grids depend on the numbers of rows and experts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from eddecode_kernels.launching import launch_kernel
from eddecode_kernels.layers_triton import kernels, power_of_two, torch_operator
from eddecode_kernels.triton_tiles import (
    Tile,
    bucket_of,
    divides,
    part_size,
    shared_memory,
    split_of,
    tile_for,
)

GROUP_NUMBERS = 8192  # pairs × experts that one program of `group_pairs` has at a time
TILE_BLOCK = 64


@dataclass(frozen=True)
class GroupedPairs:
    """Pairs of a row and an expert, put together by expert into tiles; see `triton_experts`.

    Attributes:
        order: (tiles · rows of a tile,) int32.
        tile_expert, tile_pairs: (tiles,) int32.
        pairs: how many.
    """

    order: Tensor
    tile_expert: Tensor
    tile_pairs: Tensor
    pairs: int


@torch_operator(
    "route(Tensor parts, Tensor? bias, Tensor like, Tensor(a!) experts, Tensor(b!) weights, Tensor(c!)? gates, "
    "int count, bool renormalized, bool rounded) -> ()"
)
def route(
    parts: Tensor,
    bias: Tensor | None,
    like: Tensor,
    experts: Tensor,
    weights: Tensor,
    gates: Tensor | None,
    count: int,
    renormalized: bool,
    rounded: bool,
) -> None:
    """Which experts each row goes to, of the router's product: softmax, and its largest.

    Args:
        parts: (SPLIT, M, count) float32, or with one column more: the gate of a shared expert.
        bias: of that product, or None.
        like: of the model's dtype.
        experts: (M, k) int32, written, the most probable first.
        weights: (M, k) float32, written.
        gates: (M,) float32, written with the sigmoid of the gate; None where there is none.
        count: of experts.
        renormalized: whether weights are divided by their sum.
        rounded: whether they are rounded to the model's dtype.
    """
    split, rows, columns = parts.shape
    top_k = experts.shape[1]
    launch_kernel(kernels()["experts"].route, (rows,),
        parts, parts if bias is None else bias, like, experts, weights, weights if gates is None else gates,
        E=count, TOP_K=top_k, COLUMNS=columns, SPLIT=split, BIAS=bias is not None,
        RENORMALIZED=renormalized, ROUNDED=rounded, BLOCK=power_of_two(count), BK=power_of_two(top_k), num_warps=1,
    )  # fmt: skip


@torch_operator(
    "group_pairs(Tensor experts, int count, int tile_rows, Tensor(a!) order, Tensor(b!) tile_expert, "
    "Tensor(c!) tile_pairs) -> ()"
)
def group_pairs(
    experts: Tensor, count: int, tile_rows: int, order: Tensor, tile_expert: Tensor, tile_pairs: Tensor
) -> None:
    """Put the pairs of `experts` (M, k) together by expert, in tiles of `tile_rows`; see `GroupedPairs`."""
    wide = power_of_two(count)
    block = max(16, GROUP_NUMBERS // wide)
    pairs, tiles = experts.numel(), tile_expert.shape[0]
    block = min(block, max(16, power_of_two(pairs)))
    blocks = -(-pairs // block)
    counts = order
    if blocks > 1:
        counts = torch.empty(blocks, wide, dtype=torch.int32, device=experts.device)
        launch_kernel(
            kernels()["experts"].count_pairs,
            (blocks,),
            experts,
            counts,
            pairs,
            E=count,
            BLOCK=block,
            BE=wide,
            num_warps=4,
        )
    launch_kernel(kernels()["experts"].group_pairs, (blocks,),
        experts, counts, order, tile_expert, tile_pairs, pairs, blocks, tiles,
        E=count, BM=tile_rows, ONE=blocks == 1, BLOCK=block, BE=wide, BT=TILE_BLOCK, num_warps=4,
    )  # fmt: skip


@torch_operator(
    "expert_linear(Tensor x, Tensor weight, Tensor order, Tensor tile_expert, Tensor tile_pairs, int shared_by, "
    "Tensor(a!) out) -> ()"
)
def expert_linear(
    x: Tensor,
    weight: Tensor,
    order: Tensor,
    tile_expert: Tensor,
    tile_pairs: Tensor,
    shared_by: int,
    out: Tensor,
) -> None:
    """For every pair, row pair // shared_by of x times the weights (E, N, K) of its expert: out (SPLIT, pairs, N)."""
    split, pairs, columns = out.shape
    depth = weight.shape[2]
    tile = tile_of(pairs, weight, split)
    even = divides(columns, depth, split, tile.columns)
    grid = (-(-columns // tile.columns), tile_expert.shape[0], split)
    launch_kernel(kernels()["experts"].expert_linear, grid,
        x, weight, order, tile_expert, tile_pairs, out, pairs, columns, depth, x.stride(0),
        part_size(depth, split),
        SHARED_BY=shared_by, EVEN=even, IEEE=weight.dtype == torch.float32, BM=tile.rows, BN=tile.columns,
        BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@torch_operator(
    "mix_experts(Tensor parts, Tensor weights, Tensor? shared, Tensor? shared_bias, Tensor? gates, Tensor like, "
    "bool rounded, Tensor(a!) out) -> ()"
)
def mix_experts(
    parts: Tensor,
    weights: Tensor,
    shared: Tensor | None,
    shared_bias: Tensor | None,
    gates: Tensor | None,
    like: Tensor,
    rounded: bool,
    out: Tensor,
) -> None:
    """out (M, d) float32 = Σ weight · product of a row's experts, and gate · shared expert's product.

    Args:
        parts: (SPLIT, M·k, d) float32, the pairs of a row side by side.
        weights: (M, k) float32.
        shared: (SPLIT, M, d) float32, or None.
        shared_bias: (d,) or None.
        gates: (M,) float32; None without `shared`.
        like: of the model's dtype, to which terms and sums are rounded where torch rounds them.
        rounded: whether weights are.
        out: written.
    """
    rows, size = out.shape
    block = min(1024, power_of_two(size))
    launch_kernel(kernels()["experts"].mix_experts, (rows, -(-size // block)),
        parts, weights, parts if shared is None else shared, parts if shared_bias is None else shared_bias,
        weights if gates is None else gates, like, out, size, TOP_K=weights.shape[1], SPLIT=parts.shape[0],
        ROUNDED=rounded, SHARED_SPLIT=0 if shared is None else shared.shape[0],
        SHARED_BIAS=shared_bias is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip


# Products of pairs -------------------------------------------------------------------------------------------------


def tile_of(pairs: int, weight: Tensor, split: int) -> Tile:
    """The tile for a number of pairs and the weights (E, N, K) of experts: that of a dense product of an expert's
    share of the pairs."""
    experts, columns, depth = weight.shape
    share = bucket_of(max(pairs // experts, 1))
    return tile_for(share, columns, depth, split, weight.dtype, shared_memory(weight.device))


def grouped(experts: Tensor, weight: Tensor) -> GroupedPairs:
    """The pairs of `experts` (M, k) int32 for products with weights (E, N, K)."""
    count, pairs = weight.shape[0], experts.numel()
    rows = tile_of(pairs, weight, 1).rows
    tiles = min(pairs, pairs // rows + count)  # each expert's last tile may be partly empty
    order = torch.empty(tiles * rows, dtype=torch.int32, device=experts.device)
    tile_expert, tile_pairs = (torch.empty(tiles, dtype=torch.int32, device=experts.device) for _ in range(2))
    torch.ops.eddecode.group_pairs(experts, count, rows, order, tile_expert, tile_pairs)
    return GroupedPairs(order, tile_expert, tile_pairs, pairs)


@cache
def expert_split(columns: int, depth: int, top_k: int) -> int:
    """Parts of the sums of experts' products: as if the experts of one row were one matrix."""
    return split_of(columns * top_k, depth)


def expert_product(x: Tensor, weight: Tensor, group: GroupedPairs, top_k: int, shared_by: int) -> Tensor:
    """The parts (SPLIT, pairs, N) float32 of x times weights (E, N, K), each pair with its expert's.

    Args:
        x: (pairs / shared_by, K).
        weight: contiguous.
        group: the pairs.
        top_k: experts of a row.
        shared_by: pairs of one row of x.
    """
    split = expert_split(weight.shape[1], weight.shape[2], top_k)
    out = torch.empty(split, group.pairs, weight.shape[1], dtype=torch.float32, device=x.device)
    torch.ops.eddecode.expert_linear(
        x, weight, group.order, group.tile_expert, group.tile_pairs, shared_by, out
    )
    return out
