"""How a fixed-order product is tiled: by the shape of the weights, the number of rows and the device.

SPLIT is part of the result's bits and depends on the weights' shape alone. The other numbers only change the speed.
They were measured on an H200 for a 7B-shaped Llama in bfloat16 (docs/performance.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

PROGRAMS = 128  # as many tiles as a large GPU has multiprocessors, about
TILE_COLUMNS = 64
MIN_PART = 256  # numbers that a part of a sum has at least
MAX_SPLIT = 8
DEEPEST = 128  # numbers of a sum that a tile takes at a time, at most; the others divide it
SPARE_BYTES = 4096  # of shared memory, beside the tiles


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a tile, parts of a sum, and how a program runs."""

    rows: int
    columns: int
    depth: int
    split: int
    warps: int
    stages: int


def split_of(columns: int, depth: int) -> int:
    """Parts of a product's sums, for weights (columns, depth): more where there are few columns."""
    split = 1
    while (
        split < MAX_SPLIT and columns // TILE_COLUMNS * split < PROGRAMS and depth // (2 * split) >= MIN_PART
    ):
        split *= 2
    return split


def part_size(depth: int, split: int) -> int:
    """Numbers of one part of a sum, a multiple of every tile's depth."""
    return -(-depth // (split * DEEPEST)) * DEEPEST


def divides(columns: int, depth: int, split: int, tile_columns: int) -> bool:
    """Whether weights (columns, depth) divide into tiles of so many columns, and parts of one size: no masks."""
    return columns % tile_columns == 0 and part_size(depth, split) * split == depth


def use_small_tiles_only(dtype: torch.dtype) -> None:
    """From now on use the tile of a few rows for any number, in a dtype whose tiles do not agree to the bit."""
    _only_small.add(dtype)
    tile_for.cache_clear()


_only_small: set[torch.dtype] = set()


@cache
def tile_for(rows: int, columns: int, depth: int, split: int, dtype: torch.dtype, shared_bytes: int) -> Tile:
    """The tile for a number of rows (see `bucket_of`) and weights (columns, depth)."""
    rows = 1 if dtype in _only_small else rows
    if dtype == torch.float32:  # exact float32 products: for tests, and for models that are loaded so
        return Tile(16 if rows <= 16 else 64, 64, 32, split, 4, 2)
    if rows <= 64 or columns <= TILE_COLUMNS:
        deep = depth % (128 * split) == 0 and not (split == 1 and columns < 16_384)
        preferred = Tile(16 if rows <= 16 else 64, 64, 128 if deep else 64, split, 4, 5 if deep else 6)
    elif rows <= 256 or not divides(columns, depth, split, 256):  # with masks a larger tile spills registers
        preferred = Tile(128, 128, 64, split, 8, 3)
    else:
        preferred = Tile(128, 256, 64, split, 8, 3)
    return _fitting(preferred, dtype.itemsize, shared_bytes)


def bucket_of(rows: int) -> int:
    """Numbers of rows that share a tile."""
    return next((limit for limit in (16, 64, 256) if rows <= limit), 257)


def _fitting(tile: Tile, itemsize: int, shared_bytes: int) -> Tile:
    """The tile with as many stages as shared memory has room for, and fewer columns if it has none for two."""
    stage = (tile.rows + tile.columns) * tile.depth * itemsize
    stages = min(tile.stages, max(shared_bytes - SPARE_BYTES, 0) // stage)
    if stages < 2 and tile.columns > TILE_COLUMNS:
        return _fitting(
            Tile(tile.rows, tile.columns // 2, tile.depth, tile.split, 4, 3), itemsize, shared_bytes
        )
    return Tile(tile.rows, tile.columns, tile.depth, tile.split, tile.warps, max(stages, 1))


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may use; what every supported GPU has, where that is not known."""
    if device.type != "cuda":
        return 100 << 10
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 99 << 10))
