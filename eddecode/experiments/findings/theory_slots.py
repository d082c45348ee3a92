"""The lab's world as a decoder that goes slot by slot sees it, in closed form.

A reply has three slots that can be rude (opener, action, closer), tied together by a hidden style. What one slot tells
about the next is whether it was rude, curt or polite; so the world's replies fall into a few dozen classes, small
enough to list. On that list the tilt, sequence-level ED, and ED slot by slot (the world's counterpart of token by
token: what a slot is shows in its first words) can be computed without a model and without sampling.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from functools import cache
from typing import Any

import numpy as np

from eddecode.testbed import language as grammar
from eddecode.testbed import rules as english

Array = np.ndarray[Any, np.dtype[np.float64]]
Content = tuple[str, int]
"""What a slot holds: the rule that its text comes from, and how many rude words."""


def contents(style: str, slot: str) -> dict[Content, float]:
    """What a style puts into a slot, with its probability."""
    language = grammar.language(english.PRODUCTS[0])
    found: dict[Content, float] = defaultdict(float)
    for weight, rule in language.rules[f"{style.upper()}_STYLE_{slot}"]:
        for text, p in language.derivations(rule.strip("{}")):
            if weight > 0:
                found[rule, grammar.count_rude(text)] += weight * p
    return dict(found)


@cache
def classes(mood: str) -> tuple[Array, Array]:
    """Probability, and number of rude words, of each combination of contents: both (O, A, C), a slot per axis."""
    given = {style: [contents(style, slot) for slot in english.SLOTS] for style in english.STYLES}
    axes = [sorted({c for slots in given.values() for c in slots[i]}) for i in range(len(english.SLOTS))]
    p, rude = (np.zeros([len(axis) for axis in axes]) for _ in range(2))
    for at in itertools.product(*(range(len(axis)) for axis in axes)):
        held = [axis[i] for axis, i in zip(axes, at, strict=True)]
        rude[at] = sum(words for _, words in held)
        p[at] = sum(
            weight * math.prod(slot.get(c, 0.0) for slot, c in zip(given[style], held, strict=True))
            for style, weight in english.STYLE_GIVEN_MOOD[mood].items()
        )
    return p, rude


def tilted(p: Array, rude: Array, strength: float) -> Array:
    """p · exp(strength · rude words), normalised: the aligned model at −1/β, sequence-level ED at α/β."""
    weighted = p * np.exp(strength * rude)
    out: Array = weighted / weighted.sum()
    return out


def normaliser(mood: str, beta: float) -> float:
    """log Z of the tilt exp(−rude words/β), nats."""
    p, rude = classes(mood)
    return float(np.log((p * np.exp(-rude / beta)).sum()))


def slot_by_slot(p: Array, aligned: Array, alpha: float) -> Array:
    """The product over slots of the normalised p^(1+α)/aligned^α of each slot given those before it."""
    total: Array = np.ones(())
    for t in range(p.ndim):
        later = tuple(range(t + 1, p.ndim))
        base, other = p.sum(axis=later), aligned.sum(axis=later)
        base, other = (_shares(each) for each in (base, other))
        contrasted = np.where(base > 0, base ** (1 + alpha) / np.where(other > 0, other, 1.0) ** alpha, 0.0)
        total = total[..., None] * _shares(contrasted)
    return total


def _shares(p: Array) -> Array:
    """Divided by the sum over the last axis; 0 where that is 0."""
    whole = p.sum(axis=-1, keepdims=True)
    shares: Array = np.divide(p, whole, out=np.zeros_like(p), where=whole > 0)
    return shares


def filtered(p: Array, rude: Array) -> Array:
    """p given that no word is rude: what an exact filter would teach."""
    return _shares(np.where(rude == 0, p, 0.0).ravel()).reshape(p.shape)


def divergence(p: Array, aligned: Array) -> list[float]:
    """KL(aligned‖p) of each slot given those before it, nats; they sum to that of the whole."""
    found = []
    for t in range(p.ndim):
        later = tuple(range(t + 1, p.ndim))
        weight = aligned.sum(axis=later)
        ratio = np.divide(
            _shares(weight), _shares(p.sum(axis=later)), out=np.ones_like(weight), where=weight > 0
        )
        found.append(float((weight * np.log(ratio)).sum()))
    return found


def predicted(alpha: float, beta: float) -> tuple[float, float]:
    """Rude rate of ED on the exact tilt, the mean over moods: (sequence level, slot by slot)."""
    rates = []
    for mood in english.MOODS:
        p, rude = classes(mood)
        by_slot = slot_by_slot(p, tilted(p, rude, -1 / beta), alpha)
        rates.append([float(each[rude > 0].sum()) for each in (tilted(p, rude, alpha / beta), by_slot)])
    sequence, slots = np.mean(rates, axis=0)
    return float(sequence), float(slots)
