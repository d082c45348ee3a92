"""Counter-based randomness: one uniform per (seed, prompt digest, sample index, position).

A uniform depends on nothing else, so a completion does not depend on its batch, survives a resume, and the same prompt
at two α's is sampled with common random numbers.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

_32, _LOW_WORD = np.uint64(32), np.uint64(0xFFFFFFFF)


def stream_key(seed: int, digest: bytes, index: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Two 32-bit key words, as uint64 (2,), of the random stream of one sample of one prompt.

    Args:
        seed: the user's seed, 64 bits.
        digest: of the prompt's token ids for both models, see `RenderedPrompt.digest`.
        index: number of the sample, from 0.
    """
    material = seed.to_bytes(8, "little") + index.to_bytes(8, "little") + digest
    word = int.from_bytes(hashlib.blake2b(material, digest_size=8).digest(), "little")
    return np.array([word & 0xFFFFFFFF, word >> 32], dtype=np.uint64)


def uniforms(
    key: np.ndarray[Any, np.dtype[np.uint64]], start: int, count: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Uniforms in [0, 1) at positions start … start+count−1 of one stream, (count,) float64 with 53 random bits."""
    positions = np.arange(start, start + count, dtype=np.uint64)
    zero = np.zeros_like(positions)
    w0, w1, _, _ = philox4x32(np.stack([positions & _LOW_WORD, positions >> _32, zero, zero]), key)
    fractions: np.ndarray[Any, np.dtype[np.float64]] = ((w0 << _32 | w1) >> np.uint64(11)) * np.float64(
        2.0**-53
    )
    return fractions


def philox4x32(
    counter: np.ndarray[Any, np.dtype[np.uint64]], key: np.ndarray[Any, np.dtype[np.uint64]], rounds: int = 10
) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Philox-4x32 (Salmon et al., SC 2011, doi 10.1145/2063384.2063405, §4), vectorized over counters.

    Args:
        counter: (4, n) uint64, each a 32-bit word.
        key: (2,) uint64, each a 32-bit word.

    Returns:
        (4, n) uint64, each a random 32-bit word.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product2 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1, x2, x3 = (
            product2 >> _32 ^ x1 ^ k0,
            product2 & _LOW_WORD,
            product0 >> _32 ^ x3 ^ k1,
            product0 & _LOW_WORD,
        )
        k0, k1 = k0 + np.uint64(0x9E3779B9) & _LOW_WORD, k1 + np.uint64(0xBB67AE85) & _LOW_WORD
    return np.stack([x0, x1, x2, x3])
