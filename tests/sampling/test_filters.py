"""Filters and sampling against a naive implementation, at their boundaries, and by statistics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from eddecode.sampling.filters import sample
from eddecode.sampling.rng import stream_key, uniforms
from helpers import reference


def sample_one(z: torch.Tensor, u: float, **setting: float) -> int:
    """One token from (V,) logits."""
    return int(samples(z, torch.tensor([u], dtype=torch.float64), **setting)[0])


def samples(z: torch.Tensor, u: torch.Tensor, **setting: float) -> torch.Tensor:
    """Tokens from one row of logits, one per uniform."""
    rows = u.shape[0]
    return sample(
        z.expand(rows, -1),
        torch.full((rows,), float(setting.get("temperature", 1.0))),
        torch.full((rows,), int(setting.get("top_k", 0))),
        torch.full((rows,), float(setting.get("top_p", 1.0))),
        torch.full((rows,), float(setting.get("min_p", 0.0))),
        u,
    )


SETTINGS: list[dict[str, float]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.05},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("ties", [False, True])
def test_support_and_probabilities_are_the_naive_ones(setting: dict[str, float], ties: bool) -> None:
    """A fine grid of uniforms samples the inverse CDF: each id gets its probability, within one cell."""
    generator = torch.Generator().manual_seed(len(setting) + ties)
    z = torch.randn(17, generator=generator) * 2
    if ties:
        z = (z / 2).round() * 2  # many equal logits: at boundaries too
    z[3] = -math.inf
    cells = 4096
    grid = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    sampled = samples(z, grid, **setting)
    assert (sampled.diff() >= 0).all()  # in the order of the ids
    found = torch.bincount(sampled, minlength=17).double().numpy() / cells
    naive: dict[str, Any] = {"temperature": 1.0, **setting}
    expected = reference.filtered(z.double().numpy(), **naive)
    assert np.array_equal(found > 0, expected > 1 / cells) or (expected[found == 0] < 1 / cells).all()
    assert found[expected == 0].sum() == 0
    np.testing.assert_allclose(found, expected, atol=1.01 / cells)


@pytest.mark.parametrize("kind", ["top_k", "top_p", "min_p"])
def test_the_boundary_of_a_filter_is_exact(kind: str) -> None:
    """For 300 random rows, exactly the ids are kept that the naive filter keeps."""
    generator = torch.Generator().manual_seed(8)
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    for row in range(300):
        z = torch.randn(12, generator=generator).sort(descending=bool(row % 2)).values
        value = 1 + row % 12 if kind == "top_k" else float(torch.rand(1, generator=generator)) * 0.98 + 0.01
        kept = np.flatnonzero(reference.filtered(z.double().numpy(), 1.0, **{kind: value}))  # type: ignore[arg-type]
        assert samples(z, ends, **{kind: value}).tolist() == [kept[0], kept[-1]]


def test_greedy_takes_the_lowest_of_the_largest() -> None:
    z = torch.tensor([1.0, 5.0, 2.0, 5.0])
    for u in (0.0, 0.999):
        assert sample_one(z, u, temperature=0.0) == 1
        assert sample_one(z, u, temperature=0.0, top_k=2, top_p=0.1, min_p=0.5) == 1


def test_ends_of_the_unit_interval() -> None:
    """u = 0 gives the first id with a positive probability, the largest u below 1 the last."""
    z = torch.tensor([-math.inf, -math.inf, 0.0, 1.0, -math.inf, 0.5, -math.inf])
    assert sample_one(z, 0.0) == 2
    assert sample_one(z, 1 - 2.0**-53) == 5
    rare = torch.tensor([0.0, -600.0, -math.inf])  # mass below what the total can resolve
    assert sample_one(rare, 1 - 2.0**-53) in (0, 1)


def test_rows_are_independent() -> None:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(8, 30, generator=generator)
    columns = (
        torch.tensor([0.0, 1.0, 0.5, 2.0] * 2),
        torch.tensor([0, 3, 0, 40, 7, 0, 1, 0]),
        torch.tensor([1.0, 0.9, 0.5, 1.0] * 2),
        torch.tensor([0.0, 0.0, 0.1, 0.0] * 2),
        torch.rand(8, generator=generator, dtype=torch.float64),
    )
    together = sample(z, *columns)
    alone = [int(sample(z[i : i + 1], *(column[i : i + 1] for column in columns))[0]) for i in range(8)]
    assert together.tolist() == alone


def test_samples_follow_the_distribution() -> None:
    z = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    u = torch.from_numpy(uniforms(stream_key(1, b"p", 0), 0, 20_000))
    counts = np.bincount(samples(z, u).numpy(), minlength=5)
    expected = reference.filtered(z.double().numpy(), 1.0) * 20_000
    assert stats.chisquare(counts, expected).pvalue > 1e-4
