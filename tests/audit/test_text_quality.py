"""Metrics of one completion against counting by hand."""

from __future__ import annotations

import math
import random

import pytest

from eddecode.audit.text_quality import distinct, measure, perplexity


def test_distinct_and_repetition_against_counting() -> None:
    rng = random.Random(0)
    for _ in range(50):
        ids = [rng.randrange(4) for _ in range(rng.randrange(1, 30))]
        for n in (1, 2, 4):
            seen: set[str] = set()
            fresh = total = 0
            for i in range(len(ids)):
                if i + n <= len(ids):
                    gram = "/".join(map(str, ids[i : i + n]))
                    fresh, total = fresh + (gram not in seen), total + 1
                    seen.add(gram)
            assert distinct(ids, n) == (pytest.approx(fresh / total) if total else None)
    quality = measure("word", [1, 2, 3, 4, 1, 2, 3, 4, 9], "eos", -9.0)
    assert (quality.length, quality.distinct_1, quality.repetition) == (8, 0.5, pytest.approx(1 / 5))
    assert quality.short(9)
    assert not quality.short()


def test_perplexity_and_emptiness() -> None:
    assert perplexity(-10 * math.log(7), 10) == pytest.approx(7)
    assert [perplexity(*x) for x in ((-math.inf, 3), (-1.0, 0), (None, 3), (-1e6, 1))] == [None] * 4
    assert measure("", [2], "eos", -1.0).empty
    assert measure(" \n", [5, 6], "length", -1.0).empty
    for nothing in (
        "....",
        "?!\u2026",
        "\u3164" * 9,
        "\u2800",
        "\ufffd\ufffd",
        "\u0301\ufe0f",
        "\u200b\u2060",
    ):
        assert measure(nothing, [5, 6], "eos", -1.0).empty
    for text in ("no", "5", "+", "👍", "कि", "¿sí?"):
        assert not measure(text, [5, 6], "eos", -1.0).empty
    assert not measure("x", [5], "length", -1.0).empty
    assert measure("x", [5], "length", -1.0).repetition is None
