"""The Triton kernels of decoder layers against torch in float64, and the same bits whatever the tile and the batch.

On a GPU where there is one, else in Triton's interpreter (`test_interpreter`), in float32.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eddecode.execution.packing import PackedTexts
from eddecode.sampling import rng
from eddecode_kernels import layers_triton as kernels
from eddecode_kernels import triton_tiles
from helpers.interpreter import DEVICE, runs

pytestmark = runs
OPS = torch.ops.eddecode


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("columns", "depth", "split"), [(64, 256, 1), (100, 70, 1), (72, 600, 2), (96, 1100, 4)]
)
def test_a_product_is_exact_and_has_the_same_bits_in_any_batch(columns: int, depth: int, split: int) -> None:
    x, weight = random(70, depth), random(columns, depth, seed=1)
    assert triton_tiles.split_of(columns, depth) == split
    whole = kernels.product(x, weight)
    assert whole.shape == (split, 70, columns)
    close(whole.sum(0), x.double() @ weight.double().T, 2e-4)
    for rows in (slice(5, 6), slice(5, 20), slice(50, 70)):  # tiles of 16 rows, and of 64
        assert torch.equal(kernels.product(x[rows], weight), whole[:, rows])


def test_a_split_depends_on_the_weights_alone_and_tiles_fit_small_gpus() -> None:
    assert [triton_tiles.split_of(n, 4096) for n in (12288, 4096, 1024)] == [1, 2, 8]
    assert triton_tiles.split_of(4096, 11008) == 2
    for rows in (16, 64, 256, 257):
        for shared in (99 << 10, 163 << 10, 227 << 10):
            tile = triton_tiles.tile_for(rows, 4096, 4096, 2, torch.bfloat16, shared)
            assert (tile.rows + tile.columns) * tile.depth * 2 * tile.stages <= shared
            assert triton_tiles.DEEPEST % tile.depth == 0


def test_low_rank_terms_are_added_to_their_rows_only() -> None:
    x, a, b, out = random(6, 40), random(3, 40, seed=1), random(70, 3, seed=2), random(6, 70, seed=3)
    before = out.clone()
    OPS.add_low_rank(kernels.product(x, a), b, out, 2, 1, 2)  # three rows of two tokens: the second one
    changed = torch.tensor([0, 0, 1, 1, 0, 0], device=DEVICE).bool()
    assert torch.equal(out[~changed], before[~changed])
    close(out[changed], (before + (x @ a.T) @ b.T)[changed], 1e-4)


def rms_norm(x: Tensor, weight: Tensor, offset: bool) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * (weight + offset)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_add_and_norm_against_its_formula(offset: bool, after: bool) -> None:
    hidden, parts, bias = random(3, 37), random(2, 3, 37, seed=1), random(37, seed=2)
    weight, after_weight, out = random(37, seed=3), random(37, seed=4), torch.empty(3, 37, device=DEVICE)
    added = parts.sum(0) + bias
    added = (rms_norm(added, after_weight, offset) if after else added) * 0.5
    expected = hidden + added
    alone, alone_out = hidden[1:2].clone(), torch.empty(1, 37, device=DEVICE)
    given = bias, after_weight if after else None, weight
    OPS.add_and_norm(hidden, parts, *given, out, 1e-5, 0.5, offset, True)
    close(hidden, expected)
    close(out, rms_norm(expected, weight, offset))
    OPS.add_and_norm(alone, parts[:, 1:2].contiguous(), *given, alone_out, 1e-5, 0.5, offset, True)
    assert torch.equal(alone[0], hidden[1])
    assert torch.equal(alone_out[0], out[1])


@pytest.mark.parametrize("gelu", [False, True])
def test_gate_against_torch(gelu: bool) -> None:
    parts, bias, out = 3 * random(2, 4, 50), random(50, seed=1), torch.empty(4, 25, device=DEVICE)
    OPS.gate(parts, bias, out, gelu)
    first, up = (parts.sum(0) + bias).double().chunk(2, -1)
    close(out, (F.gelu(first, approximate="tanh") if gelu else F.silu(first)) * up)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (M, heads, D), cos and sin (M, R): transformers' rotation of the first R numbers."""
    size = cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    half = torch.cat([-turned[..., size // 2 :], turned[..., : size // 2]], -1)
    return torch.cat([turned * cos[:, None] + half * sin[:, None], rest], -1)


@pytest.mark.parametrize(("rotary", "norm"), [(12, 0), (6, 1), (12, 2), (0, 1)])
def test_rotation_norms_of_heads_and_the_cache(rotary: int, norm: int) -> None:
    heads, kv_heads, size, capacity = 4, 2, 12, 6
    parts, bias = random(2, 4, (heads + 2 * kv_heads) * size), random((heads + 2 * kv_heads) * size, seed=1)
    angles = random(2, 2, max(rotary, 2) // 2, seed=2)
    cos, sin = (torch.cat([each, each], -1).contiguous() for each in (angles.cos(), angles.sin()))
    positions = torch.tensor([[3, 4], [0, 1]], device=DEVICE)
    query = torch.empty(4, heads, size, device=DEVICE)
    keys, values = (torch.zeros(3, kv_heads, capacity, size, device=DEVICE) for _ in range(2))
    wide = (heads, kv_heads) if norm == 2 else (1, 1)
    norms = [random(n * size, seed=3) if norm else None for n in wide]
    OPS.rotate_and_write(
        parts, bias, *norms, cos, sin, positions, query, keys, values, rotary, 1e-5, True, True
    )
    x = (parts.sum(0) + bias).split([heads * size, kv_heads * size, kv_heads * size], -1)
    q, k = (
        each if weight is None else rms_norm(each.view(4, -1, weight.shape[0]), weight, True).reshape(4, -1)
        for each, weight in zip(x[:2], norms, strict=True)
    )
    q, k = (each.reshape(4, -1, size) for each in (q, k))
    if rotary:
        q, k = (rotated(each, cos.view(4, -1), sin.view(4, -1)) for each in (q, k))
    close(query, q)
    for token, (row, at) in enumerate([(0, 3), (0, 4), (1, 0), (1, 1)]):
        close(keys[row, :, at], k[token])
        close(values[row, :, at], x[2][token].view(kv_heads, size))
    assert not keys[2].any()
    assert not keys[0, :, :3].any()


def naive(query: Tensor, keys: Tensor, values: Tensor, start: int, end: int, softcap: float) -> Tensor:
    """One query (H, D) over keys (HK, capacity, D)."""
    repeat = query.shape[0] // keys.shape[0]
    k, v = (each[:, start:end].double().repeat_interleave(repeat, 0) for each in (keys, values))
    scores = 0.3 * (k @ query.double()[:, :, None])[..., 0]
    scores = softcap * (scores / softcap).tanh() if softcap else scores
    return (scores.softmax(-1)[:, None] @ v)[:, 0]


@pytest.mark.parametrize(("softcap", "window"), [(0.0, None), (2.0, 30)])
def test_attention_over_each_rows_own_keys(softcap: float, window: int | None) -> None:
    lengths, capacity, size = [300, 1, 70], 320, 12
    query = random(3, 4, size)
    keys, values = random(3, 2, capacity, size, seed=1), random(3, 2, capacity, size, seed=2)
    end = torch.tensor(lengths, device=DEVICE)[:, None]
    start = torch.zeros_like(end) if window is None else (end - window).clamp(min=0)
    out = torch.empty_like(query)
    OPS.attend(query, keys, values, start, end, out, capacity, 0.3, softcap)
    for row, length in enumerate(lengths):
        close(out[row], naive(query[row], keys[row], values[row], int(start[row]), length, softcap))
        one = slice(row, row + 1)
        alone = torch.empty_like(query[one])
        least = 64 * math.ceil(length / 64)  # as few chunks as the row itself needs
        OPS.attend(query[one], keys[one], values[one], start[one], end[one], alone, least, 0.3, softcap)
        assert torch.equal(alone[0], out[row])


@pytest.mark.parametrize("window", [None, 20])
def test_packed_texts_attend_as_each_does_by_itself(window: int | None) -> None:
    """Tiles of several tokens, with another beginning, and in two passes: the bits of one query alone."""
    packed, size = PackedTexts([[0] * 270, [0] * 3, [0] * 33]), 8
    query = random(packed.total, 2, size)
    keys, values = random(1, 1, packed.total, size, seed=1), random(1, 1, packed.total, size, seed=2)
    positions, origins = packed.positions.to(DEVICE), packed.origins.to(DEVICE)
    begin = torch.zeros_like(positions) if window is None else (positions - window).clamp(min=0)
    out = torch.empty_like(query)
    for first, stop in ((0, 200), (200, packed.total)):
        tiles = packed.tiles(first, stop, kernels.tile_tokens(2, 1)).to(DEVICE)
        start, end = ((each + origins)[None, first:stop].contiguous() for each in (begin, positions + 1))
        OPS.attend_packed(query[first:stop], keys, values, start, end, tiles, out[first:stop], 0.3, 0.0)
    for token in (0, 1, 199, 200, 255, 256, 269, 270, 272, 273, 305):
        text = next(i for i, (_, stop) in enumerate(packed.spans) if token < stop)
        own = slice(*packed.spans[text])
        alone = torch.empty_like(query[:1])
        where = [each[token].reshape(1, 1) for each in (begin, positions + 1)]
        OPS.attend(
            query[token : token + 1], keys[:, :, own], values[:, :, own], *where, alone, own.stop - own.start, 0.3, 0.0
        )  # fmt: skip
        assert torch.equal(alone[0], out[token]), token


def test_stretches_of_memory_are_copied_in_one_launch() -> None:
    source, target = random(2, 3, 2500), torch.zeros(4, 3, 2600, device=DEVICE)
    entries = ((0, 3, 2500, 3), (1, 0, 7, 3), (1, 2, 100, 1))  # from, to, numbers of a head, heads
    table = [
        [source[a].data_ptr(), target[b].data_ptr(), n, source.stride(1), target.stride(1), heads]
        for a, b, n, heads in entries
    ]
    OPS.copy_blocks(torch.tensor(table, device=DEVICE), 3, 2500, 4)
    expected = torch.zeros_like(target)
    for a, b, n, heads in entries:
        expected[b, :heads, :n] = source[a, :heads, :n]
    assert torch.equal(target, expected)


def test_uniforms_are_those_of_the_host_to_the_bit() -> None:
    rows = [
        (rng.stream_key(seed, b"prompt", seed % 3), 1000 * seed + (1 << 33) * (seed % 2))
        for seed in range(70)
    ]
    keys = torch.tensor(np.stack([key for key, _ in rows]).astype(np.int64), device=DEVICE)
    positions = torch.tensor([position for _, position in rows], device=DEVICE)
    out = torch.empty(70, dtype=torch.float64, device=DEVICE)
    OPS.philox_uniforms(keys, positions, out)
    expected = [float(rng.uniforms(key, position, 1)[0]) for key, position in rows]
    assert out.tolist() == expected
