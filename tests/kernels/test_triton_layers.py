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

from eddecode.execution import copying
from eddecode.execution.packing import PackedTexts
from eddecode.sampling import rng
from eddecode_kernels import experts_triton, triton_tiles, triton_trial
from eddecode_kernels import layers_triton as kernels
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
    for columns, expected in ((60, 64), (896, 128), (4096, 256)):  # a large tile with masks spills registers
        wide = triton_tiles.tile_for(257, columns, 4096, 2, torch.bfloat16, 227 << 10).columns
        assert wide == expected


@pytest.mark.parametrize("rank", [3, 70])  # 64 numbers are added up at a time
def test_low_rank_terms_are_added_to_their_rows_only(rank: int) -> None:
    x, a, b, out = random(6, 40), random(rank, 40, seed=1), random(70, rank, seed=2), random(6, 70, seed=3)
    before = out.clone()
    OPS.add_low_rank(kernels.product(x, a), b, out, 2, 1, 2)  # three rows of two tokens: the second one
    changed = torch.tensor([0, 0, 1, 1, 0, 0], device=DEVICE).bool()
    assert torch.equal(out[~changed], before[~changed])
    close(out[changed], (before.double() + (x.double() @ a.double().T) @ b.double().T)[changed], 1e-4)


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


@pytest.mark.parametrize("renormalized", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_the_router_against_torch(renormalized: bool, gated: bool) -> None:
    count, top_k, rows = 5, 3, 4
    parts = random(2, rows, count + gated)
    chosen = torch.empty(rows, top_k, dtype=torch.int32, device=DEVICE)
    weights, gates = torch.empty(rows, top_k, device=DEVICE), torch.empty(rows, device=DEVICE)
    like = random(1)
    OPS.route(parts, None, like, chosen, weights, gates if gated else None, count, renormalized, False)
    z = parts.sum(0).double()
    expected, where = z[:, :count].softmax(-1).topk(top_k, dim=-1)
    assert torch.equal(chosen.long(), where)
    close(weights, expected / expected.sum(-1, keepdim=True) if renormalized else expected)
    if gated:
        close(gates, z[:, count].sigmoid())


def test_a_router_without_numbers_still_names_experts() -> None:
    """Their weights are read before anyone sees the NaN."""
    chosen, weights = torch.empty(1, 2, dtype=torch.int32, device=DEVICE), torch.empty(1, 2, device=DEVICE)
    parts = torch.full((1, 1, 3), math.nan, device=DEVICE)
    OPS.route(parts, None, random(1), chosen, weights, None, 3, True, False)
    assert ((chosen >= 0) & (chosen < 3)).all()
    assert weights.isnan().all()


@pytest.mark.parametrize("numbers", [8192, 64])
def test_pairs_are_put_together_by_expert(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one block and in 18; an expert without pairs has no tile, and no tile has pairs of two experts."""
    monkeypatch.setattr(experts_triton, "GROUP_NUMBERS", numbers)
    chosen = torch.randint(0, 3, (140, 2), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    chosen[chosen == 1] = 4
    group = experts_triton.grouped(chosen.to(DEVICE), random(5, 8, 8))
    tiles = group.order.view(len(group.tile_pairs), -1)
    taken = [tile[:n].tolist() for tile, n in zip(tiles, group.tile_pairs.tolist(), strict=True)]
    found: dict[int, list[int]] = {}
    for expert, pairs in zip(group.tile_expert.tolist(), taken, strict=True):
        assert (expert < 0) == (not pairs)
        found.setdefault(expert, []).extend(pairs)
    flat = chosen.view(-1).tolist()
    assert {e: p for e, p in found.items() if e >= 0} == {
        e: [i for i, each in enumerate(flat) if each == e] for e in (0, 2, 4)
    }


@pytest.mark.parametrize(("columns", "depth"), [(64, 256), (40, 70)])
def test_products_of_experts_are_exact_and_have_the_same_bits_in_any_batch(columns: int, depth: int) -> None:
    x, weight = random(40, depth), random(2, columns, depth, seed=1)
    chosen = torch.randint(0, 2, (40, 2), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    chosen = chosen.to(DEVICE)

    def product(rows: slice) -> Tensor:
        group = experts_triton.grouped(chosen[rows], weight)
        return experts_triton.expert_product(x[rows], weight, group, 2, shared_by=2)

    whole = product(slice(None))  # tiles of 64
    expected = torch.einsum(
        "pnk,pk->pn", weight[chosen.view(-1)].double(), x.repeat_interleave(2, 0).double()
    )
    close(whole.sum(0), expected, 2e-4)
    for first, last in ((0, 1), (7, 20)):  # tiles of 16
        assert torch.equal(product(slice(first, last)), whole[:, 2 * first : 2 * last])


@pytest.mark.parametrize("shared", [False, True])
def test_the_weighted_sum_of_experts_against_its_formula(shared: bool) -> None:
    parts, weights = random(2, 6, 21), random(3, 2, seed=1)
    others = [random(2, 3, 21, seed=2), random(21, seed=3), random(3, seed=4)] if shared else [None] * 3
    out = torch.empty(3, 21, device=DEVICE)
    OPS.mix_experts(parts, weights, *others, random(1), False, out)
    expected = (parts.sum(0).view(3, 2, 21) * weights[:, :, None]).sum(1)
    if shared:
        expected = expected + others[2][:, None] * (others[0].sum(0) + others[1])
    close(out, expected)


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
        tiles = packed.tiles(first, stop, kernels.tile_tokens(2, 1, size)).to(DEVICE)
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


def test_the_trial_of_attention_takes_tiles_that_keep_their_bits_or_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the heads of a model; large tiles that differ are given up, and if small ones differ, too, all of it is."""
    monkeypatch.setattr(triton_trial, "KEYS", 20)
    monkeypatch.setattr(kernels, "_small_attention", [])
    given = torch.device(DEVICE), torch.float32, 6, 2, 12, 2.0
    assert triton_trial.run_attention_trial(*given) is None
    assert [kernels.tile_tokens(6, 2, size) for size in (12, 128, 256)] == [16, 16, 8]
    pack = triton_trial.packed_as_alone
    monkeypatch.setattr(
        triton_trial, "packed_as_alone", lambda *how: bool(kernels._small_attention) and pack(*how)
    )
    assert triton_trial.run_attention_trial(*given) is None
    assert kernels.tile_tokens(6, 2, 12) == 4
    monkeypatch.setattr(triton_trial, "packed_as_alone", lambda *_: False)
    assert triton_trial.run_attention_trial(*given) is not None


@pytest.mark.parametrize(
    "least", [7, 8]
)  # the numbers of all but the first entry; of 8, four are moved at once
def test_stretches_of_memory_are_copied_in_one_launch(least: int) -> None:
    source, target = random(2, 3, 2500), torch.zeros(4, 3, 2600, device=DEVICE)
    entries = ((0, 3, 2500, 3), (1, 0, least, 3), (1, 2, 100, 1))  # from, to, numbers of a head, heads
    table = torch.tensor(
        [
            [source[a].data_ptr(), target[b].data_ptr(), n, source.stride(1), target.stride(1), heads]
            for a, b, n, heads in entries
        ]
    )
    given, itemsize = copying.widest(table, 4)
    assert itemsize == (16 if least == 8 else 4)
    OPS.copy_blocks(given.to(DEVICE), 3, int(given[:, 2].max()), itemsize)
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
