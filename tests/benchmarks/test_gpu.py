"""The GPU benchmark where there is none: the contenders do the same work, and the figures follow from the times."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import gpu, measure
from benchmarks.pairs import BenchPair, Shape, build
from benchmarks.roofline import bytes_to_read
from benchmarks.tasks import TASKS, Work


@pytest.fixture(scope="module")
def pair() -> BenchPair:
    return build(Shape(hidden=32, feed_forward=48, layers=2, heads=4, vocabulary=300), "float32")


def work_on(pair: BenchPair, **changes: Any) -> Work:
    return replace(TASKS["T2"].work(pair, quick=True), temperature=0.0, **changes)


def test_static_caches_give_the_tokens_of_growing_ones(pair: BenchPair) -> None:
    """Twice, with another number of tokens in between: the caches are emptied and kept by shape."""
    compiled = gpu.CompiledPair(pair)
    for tokens in (8, 5, 8):
        work = work_on(pair, alphas=(0.3, 1.0), new_tokens=tokens)
        assert compiled.complete(work) == gpu.ProcessorWay(pair).complete(work)
    assert len(compiled.caches) == 2
    floor = work_on(pair, alphas=(0.3,))
    assert gpu.CompiledFloor(pair).complete(floor) == gpu.Floor(pair).complete(floor)


def test_figures_follow_from_the_times(pair: BenchPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.Bandwidth, "measure", lambda self: 1e9)
    monkeypatch.setitem(measure.BUFFER_BYTES, "cpu", 1 << 20)
    work = work_on(pair, alphas=(0.3,), new_tokens=3)
    names = ["eager", "compiled-pair", "floor"]
    found = gpu.measure(pair, work, names, 2, "cpu")
    assert list(found["contenders"]) == names
    for name, models in zip(names, (2, 2, 1), strict=True):
        entry = found["contenders"][name]
        assert len(entry["seconds"]) == 2
        shares = [bytes_to_read(pair, work, models) / 1e9 / s for s in entry["seconds"]]
        assert entry["roofline"]["max"] == pytest.approx(max(shares))
        eager = found["contenders"]["eager"]["seconds"]
        gains = [a / b for a, b in zip(eager, entry["seconds"], strict=True)]
        assert entry["over_eager"]["min"] == pytest.approx(min(gains))
    text = io.StringIO()
    gpu.show(Console(file=text, width=120), "T2", found)
    assert "read 1 GB/s" in text.getvalue()
    assert "(b) static caches, compiled" in text.getvalue()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "no CUDA device here; nothing was measured" in capsys.readouterr().out
