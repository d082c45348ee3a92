"""Model runners against plain forward passes, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eddecode.execution import runner as module
from eddecode.execution.runner import CachedModelRunner
from eddecode.execution.uncached_runner import UncachedModelRunner
from helpers import decoding, reference, tiny

EVERY = pytest.mark.parametrize("arch", list(tiny.ARCHITECTURES))
KINDS = pytest.mark.parametrize("kind", [CachedModelRunner, UncachedModelRunner])


def expected(model: Any, texts: list[list[int]]) -> np.ndarray[Any, Any]:
    return np.stack([reference.next_logits(model, text) for text in texts])


def close(found: torch.Tensor, wanted: np.ndarray[Any, Any]) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=1e-4, atol=2e-4)


@EVERY
@KINDS
def test_rows_are_added_decoded_removed_and_truncated(arch: str, kind: Any) -> None:
    """Rows of lengths around the sliding window; every logit is that of the row's own whole text."""
    model = tiny.tiny_model(arch)
    model_runner = kind(model)
    rows: list[list[int]] = []
    texts = [decoding.ids(i, length) for i, length in enumerate((3, 20, 8, 1))]
    for text, prefix in zip(texts, model_runner.prefill(texts), strict=True):
        close(prefix.logits, reference.next_logits(model, text))
        assert (prefix.length, prefix.ids) == (len(text), text)
        model_runner.add(prefix)
        rows.append(list(text))
    assert model_runner.occupied == 4

    def extend(count: int, seed: int) -> None:
        new = [decoding.ids(seed + i, count) for i in range(len(rows))]
        found = model_runner.forward(torch.tensor(new))
        for row, more in zip(rows, new, strict=True):
            row.extend(more)
        for back in range(count):
            cut = count - 1 - back
            close(found[:, back], expected(model, [row[: len(row) - cut] for row in rows]))

    extend(1, 100)
    extend(3, 200)
    model_runner.remove(1)
    rows[1] = rows.pop()
    extend(1, 300)
    model_runner.truncate([len(rows[0]) - 2, len(rows[1]), len(rows[2]) - 1])
    rows[0], rows[2] = rows[0][:-2], rows[2][:-1]
    model_runner.trim()
    extend(2, 400)
    late = model_runner.prefill([decoding.ids(9, 13)])[0]
    model_runner.add(late)
    rows.append(list(late.ids))
    extend(1, 500)


@EVERY
@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_of_a_long_prompt_change_nothing(
    arch: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.tiny_model(arch)
    texts = [decoding.ids(i, length) for i, length in enumerate((7, 30, 14, 1))]
    monkeypatch.setattr(module, "PREFILL_CHUNK", chunk)
    for text, prefix in zip(texts, CachedModelRunner(model).prefill(texts), strict=True):
        close(prefix.logits, reference.next_logits(model, text))
        for keys, values in prefix.states:
            assert keys.shape[1] == values.shape[1] == len(text)


def test_a_prefill_touches_no_slot() -> None:
    model_runner = CachedModelRunner(tiny.tiny_model())
    model_runner.add(model_runner.prefill([(5, 6, 7)])[0])
    before = [tensor.clone() for layer in model_runner.cache.export_prefix(0, 3) for tensor in layer]
    model_runner.prefill([decoding.ids(1, 40)])
    after = [tensor for layer in model_runner.cache.export_prefix(0, 3) for tensor in layer]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert model_runner.occupied == 1


def test_the_bytes_of_a_prefix_are_those_of_its_states() -> None:
    prefix = CachedModelRunner(tiny.tiny_model()).prefill([decoding.ids(1, 11)])[0]
    assert (
        prefix.nbytes == 2 * 2 * 2 * 8 * 11 * 4
    )  # layers, keys and values, heads, head_dim, positions, float32
