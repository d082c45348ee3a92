"""The toy language, slot by slot and in closed form.

A reply has three slots that can be rude (opener, action, closer), linked by a hidden style. What one slot tells about
the next is only whether it was rude, curt or polite; so the replies fall into a few dozen classes, few enough to list.
On this list the tilt, sequence-level ED, and ED slot by slot (the counterpart of token by token: the content of a slot
is decided by its first words) are computed without a model and without sampling.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from functools import cache

import numpy as np

from eddecode.experiments.findings.criteria import Floats
from eddecode.testbed import language, rules

Content = tuple[str, int]
"""What a slot contains: the rule that its text comes from, and its number of rude words."""


def slot_contents(style: str, slot: str) -> dict[Content, float]:
    """The contents of a slot in a style, with their probabilities."""
    bound = language.grammar(rules.PRODUCTS[0])
    found: dict[Content, float] = defaultdict(float)
    for weight, rule in bound.rules[f"{style.upper()}_STYLE_{slot}"]:
        for text, p in bound.derivations(rule.strip("{}")):
            if weight > 0:
                found[rule, language.count_rude(text)] += weight * p
    return dict(found)


@cache
def reply_classes(mood: str) -> tuple[Floats, Floats]:
    """Probability and number of rude words of each combination of contents: both (O, A, C), an axis per slot."""
    given = {style: [slot_contents(style, slot) for slot in rules.SLOTS] for style in rules.STYLES}
    axes = [sorted({c for slots in given.values() for c in slots[i]}) for i in range(len(rules.SLOTS))]
    p, rude = (np.zeros([len(axis) for axis in axes]) for _ in range(2))
    for at in itertools.product(*(range(len(axis)) for axis in axes)):
        held = [axis[i] for axis, i in zip(axes, at, strict=True)]
        rude[at] = sum(words for _, words in held)
        p[at] = sum(
            weight * math.prod(slot.get(c, 0.0) for slot, c in zip(given[style], held, strict=True))
            for style, weight in rules.STYLE_GIVEN_MOOD[mood].items()
        )
    return p, rude


def tilted(p: Floats, rude: Floats, strength: float) -> Floats:
    """p · exp(strength · rude words), normalized: the aligned model at −1/β, sequence-level ED at α/β."""
    weighted = p * np.exp(strength * rude)
    out: Floats = weighted / weighted.sum()
    return out


def log_normalizer(mood: str, beta: float) -> float:
    """log Z of the tilt exp(−rude words/β), nats."""
    p, rude = reply_classes(mood)
    return float(np.log((p * np.exp(-rude / beta)).sum()))


def slot_by_slot(p: Floats, aligned: Floats, alpha: float) -> Floats:
    """The product over slots of the normalized p^(1+α)/aligned^α of each slot given the slots before it."""
    total: Floats = np.ones(())
    for t in range(p.ndim):
        later = tuple(range(t + 1, p.ndim))
        base, other = p.sum(axis=later), aligned.sum(axis=later)
        base, other = (_shares(each) for each in (base, other))
        contrasted = np.where(base > 0, base ** (1 + alpha) / np.where(other > 0, other, 1.0) ** alpha, 0.0)
        total = total[..., None] * _shares(contrasted)
    return total


def _shares(p: Floats) -> Floats:
    """Divided by the sum over the last axis; 0 where that is 0."""
    whole = p.sum(axis=-1, keepdims=True)
    shares: Floats = np.divide(p, whole, out=np.zeros_like(p), where=whole > 0)
    return shares


def filtered(p: Floats, rude: Floats) -> Floats:
    """p given that no word is rude: the target of an exact filter."""
    return _shares(np.where(rude == 0, p, 0.0).ravel()).reshape(p.shape)


def slot_divergences(p: Floats, aligned: Floats) -> list[float]:
    """KL(aligned‖p) of each slot given the slots before it, nats; the sum is the divergence of whole replies."""
    found = []
    for t in range(p.ndim):
        later = tuple(range(t + 1, p.ndim))
        weight = aligned.sum(axis=later)
        ratio = np.divide(
            _shares(weight), _shares(p.sum(axis=later)), out=np.ones_like(weight), where=weight > 0
        )
        found.append(float((weight * np.log(ratio)).sum()))
    return found


def predicted_rates(alpha: float, beta: float) -> tuple[float, float]:
    """Rude rate of ED on the exact tilt, mean over moods: (sequence level, slot by slot)."""
    rates = []
    for mood in rules.MOODS:
        p, rude = reply_classes(mood)
        by_slot = slot_by_slot(p, tilted(p, rude, -1 / beta), alpha)
        rates.append([float(each[rude > 0].sum()) for each in (tilted(p, rude, alpha / beta), by_slot)])
    sequence, slots = np.mean(rates, axis=0)
    return float(sequence), float(slots)
