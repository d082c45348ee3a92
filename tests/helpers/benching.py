"""What the tests of the benchmarks have in common: a small model and small work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.pairs import BenchPair, Shape
from benchmarks.tasks import TASKS, Work

SHAPE = Shape(hidden=32, feed_forward=48, layers=2, heads=4, vocabulary=300)


def work_on(pair: BenchPair, task: str, **changes: Any) -> Work:
    return replace(TASKS[task].work(pair, quick=True), **changes)
