"""Parameters, filters, the draw, and the counter-based randomness."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from eddecode.errors import EddecodeError, ParamsError
from eddecode.sampling.filters import sample
from eddecode.sampling.params import SamplingParams
from eddecode.sampling.rng import philox4x32, stream_key, uniforms
from helpers import reference


def draw(z: torch.Tensor, u: float, **setting: float) -> int:
    """One draw from (V,) logits."""
    return int(draws(z, torch.tensor([u], dtype=torch.float64), **setting)[0])


def draws(z: torch.Tensor, u: torch.Tensor, **setting: float) -> torch.Tensor:
    """Draws from one row of logits, one per uniform."""
    rows = u.shape[0]
    return sample(
        z.expand(rows, -1),
        torch.full((rows,), float(setting.get("temperature", 1.0))),
        torch.full((rows,), int(setting.get("top_k", 0))),
        torch.full((rows,), float(setting.get("top_p", 1.0))),
        torch.full((rows,), float(setting.get("min_p", 0.0))),
        u,
    )


# The draw --------------------------------------------------------------------------------------------------------

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
def test_the_support_and_every_mass_are_the_naive_ones(setting: dict[str, float], ties: bool) -> None:
    """The inverse CDF is read off by a fine grid of uniforms: each id gets its own length of it, within one cell."""
    generator = torch.Generator().manual_seed(len(setting) + ties)
    z = torch.randn(17, generator=generator) * 2
    if ties:
        z = (z / 2).round() * 2  # many equal logits: at boundaries too
    z[3] = -math.inf
    cells = 4096
    grid = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    drawn = draws(z, grid, **setting)
    assert (drawn.diff() >= 0).all()  # in the order of the ids
    found = torch.bincount(drawn, minlength=17).double().numpy() / cells
    naive: dict[str, Any] = {"temperature": 1.0, **setting}
    expected = reference.filtered(z.double().numpy(), **naive)
    assert np.array_equal(found > 0, expected > 1 / cells) or (expected[found == 0] < 1 / cells).all()
    assert found[expected == 0].sum() == 0
    np.testing.assert_allclose(found, expected, atol=1.01 / cells)


@pytest.mark.parametrize("kind", ["top_k", "top_p", "min_p"])
def test_the_boundary_of_a_filter_is_exact(kind: str) -> None:
    """What is kept, for 300 random rows: nothing more and nothing less than the naive filter keeps."""
    generator = torch.Generator().manual_seed(8)
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    for row in range(300):
        z = torch.randn(12, generator=generator).sort(descending=bool(row % 2)).values
        value = 1 + row % 12 if kind == "top_k" else float(torch.rand(1, generator=generator)) * 0.98 + 0.01
        kept = np.flatnonzero(reference.filtered(z.double().numpy(), 1.0, **{kind: value}))  # type: ignore[arg-type]
        assert draws(z, ends, **{kind: value}).tolist() == [kept[0], kept[-1]]


def test_greedy_takes_the_lowest_of_the_largest() -> None:
    z = torch.tensor([1.0, 5.0, 2.0, 5.0])
    for u in (0.0, 0.999):
        assert draw(z, u, temperature=0.0) == 1
        assert draw(z, u, temperature=0.0, top_k=2, top_p=0.1, min_p=0.5) == 1


def test_ends_of_the_unit_interval() -> None:
    """u = 0 is the first id that has any mass, the largest u below 1 the last."""
    z = torch.tensor([-math.inf, -math.inf, 0.0, 1.0, -math.inf, 0.5, -math.inf])
    assert draw(z, 0.0) == 2
    assert draw(z, 1 - 2.0**-53) == 5
    rare = torch.tensor([0.0, -600.0, -math.inf])  # mass below what the total can resolve
    assert draw(rare, 1 - 2.0**-53) in (0, 1)


def test_rows_do_not_see_each_other() -> None:
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


def test_draws_with_our_own_uniforms_follow_the_distribution() -> None:
    z = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    u = torch.from_numpy(uniforms(stream_key(1, b"p", 0), 0, 20_000))
    counts = np.bincount(draws(z, u).numpy(), minlength=5)
    expected = reference.filtered(z.double().numpy(), 1.0) * 20_000
    assert stats.chisquare(counts, expected).pvalue > 1e-4


# Randomness ------------------------------------------------------------------------------------------------------

# Random123 1.14, tests/kat_vectors: philox4x32 with 10 rounds; counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_the_published_answers(counter: str, key: str, result: str) -> None:
    def words(text: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return np.array([int(word, 16) for word in text.split()], dtype=np.uint64)

    found = philox4x32(np.stack([words(counter), words(counter)], axis=1), words(key))
    for column in found.T:
        assert column.tolist() == words(result).tolist()


def test_a_uniform_belongs_to_its_position() -> None:
    key = stream_key(7, b"digest", 2)
    whole = uniforms(key, 0, 50)
    assert np.array_equal(uniforms(key, 20, 5), whole[20:25])
    assert ((whole >= 0) & (whole < 1)).all()
    assert len(set(whole.tolist())) == 50
    far = uniforms(key, 2**32 - 1, 2)  # the counter carries over into its second word
    assert len({*far.tolist(), whole[0]}) == 3


def test_uniforms_are_uniform() -> None:
    """Kolmogorov-Smirnov within a stream and across streams; serial correlation within 4 standard errors."""
    within = uniforms(stream_key(0, b"x", 0), 0, 20_000)
    across = np.array([uniforms(stream_key(s, b"x", i), 0, 1)[0] for s in range(50) for i in range(50)])
    for values in (within, across):
        assert stats.kstest(values, "uniform").pvalue > 1e-4
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / len(values) ** 0.5


def test_streams_differ_by_seed_prompt_and_sample() -> None:
    keys = {
        tuple(stream_key(seed, digest, index).tolist())
        for seed in (0, 1, 2**64 - 1)
        for digest in (b"a" * 16, b"b" * 16)
        for index in (0, 1, 256)
    }
    assert len(keys) == 18
    assert all(word < 2**32 for key in keys for word in key)


# Parameters ------------------------------------------------------------------------------------------------------


def test_sequences_become_tuples() -> None:
    params = SamplingParams(stop="END", stop_token_ids=[3, np.int64(4)], suppress_tokens=range(2))  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids, params.suppress_tokens) == (("END",), (3, 4), (0, 1))
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert hash(params) == hash(params.replace())


def test_replace_checks_again() -> None:
    params = SamplingParams(alpha=0.3)
    assert params.replace(alpha=1).alpha == 1
    assert params.alpha == 0.3
    with pytest.raises(ParamsError, match="top_k is -1"):
        params.replace(top_k=-1)


@pytest.mark.parametrize("alpha", [-100.0, -1, 0, 1e6])
def test_any_finite_alpha_is_accepted(alpha: float) -> None:
    assert SamplingParams(alpha=alpha).alpha == alpha


BAD: list[tuple[dict[str, Any], str]] = [
    ({"alpha": math.nan}, "alpha is nan; expected a finite number"),
    ({"alpha": math.inf}, "alpha is inf; expected a finite number"),
    ({"alpha": "1"}, "alpha is '1'; expected a finite number"),
    ({"temperature": -0.1}, "temperature is -0.1; expected a value of at least 0"),
    ({"temperature": True}, "temperature is True; expected a finite number"),
    ({"top_p": 0}, r"top_p is 0; expected a value in \(0, 1\]; .* use temperature=0"),
    ({"top_p": 1.1}, "top_p is 1.1; expected a value of at most 1"),
    ({"min_p": -1}, "min_p is -1; expected a value of at least 0"),
    ({"plausibility": 2}, "plausibility is 2; expected a value of at most 1"),
    ({"top_k": -1}, "top_k is -1; expected a value of at least 0"),
    ({"top_k": 2.5}, "top_k is 2.5; expected an integer"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a value of at least 1"),
    ({"n": 0}, "n is 0; expected a value of at least 1"),
    ({"n": True}, "n is True; expected an integer"),
    ({"seed": -1}, "seed is -1; expected a value of at least 0"),
    ({"seed": 2**64}, "seed is 18446744073709551616; expected a value below 18446744073709551616"),
    ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9, above max_new_tokens=8; lower one or"),
    ({"stop": ["a", ""]}, r"stop\[1\] is ''; expected text of at least 1 character"),
    ({"stop": [3]}, r"stop\[0\] is 3; expected text"),
    ({"stop": 3}, "stop is 3; expected a sequence of strings"),
    ({"stop_token_ids": 3}, "stop_token_ids is 3; expected a sequence of token ids"),
    ({"stop_token_ids": [-1]}, r"stop_token_ids\[0\] is -1; expected a value of at least 0"),
    ({"temprature": 1}, r"temprature is unknown; did you mean temperature\?"),
    ({"access": 3}, "access is 3; expected"),
    ({"suppress_tokens": ["a"]}, r"suppress_tokens\[0\] is 'a'; expected an integer"),
]


@pytest.mark.parametrize(("setting", "message"), BAD)
def test_bad_values_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message) as caught:
        SamplingParams(**setting)
    assert isinstance(caught.value, EddecodeError)
    assert isinstance(caught.value, ValueError)
