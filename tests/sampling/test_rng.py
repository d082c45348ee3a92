"""Counter-based randomness: published results, positions, uniformity and distinct streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from eddecode.sampling.rng import philox4x32, stream_key, uniforms

# Random123 1.14, tests/kat_vectors: philox4x32 with 10 rounds; counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_the_published_results(counter: str, key: str, result: str) -> None:
    def words(text: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return np.array([int(word, 16) for word in text.split()], dtype=np.uint64)

    found = philox4x32(np.stack([words(counter), words(counter)], axis=1), words(key))
    for column in found.T:
        assert column.tolist() == words(result).tolist()


def test_a_uniform_depends_on_its_position_only() -> None:
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
