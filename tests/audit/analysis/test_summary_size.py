"""A summary of many prompts stays within its memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eddecode.audit.analysis.summarize import summarize
from eddecode.audit.conditions import ALIGNED, BASE, Condition
from eddecode.audit.stats.proportions import clustered_rate
from helpers.stub_sampler import uniform


@dataclass(frozen=True)
class Seat:
    name: str
    role: str
    identity: str = "1"


class Large:
    """A store of 10,000 prompts and 10 conditions, as it would answer."""

    folder, count = Path(), 10_000

    def __init__(self) -> None:
        self.said = [self.Record(i) for i in range(self.count)]

    class Record:
        def __init__(self, i: int) -> None:
            self.index, self.digest, self.categories, self.benign = i, f"{i:016x}", (str(i % 5),), False

    def prompts(self) -> list[Any]:
        return self.said

    audited_prompts = prompts

    def skipped(self) -> dict[int, str]:
        return {}

    def asked_judge(self) -> str:
        return "a"

    def conditions(self) -> list[Any]:
        return []

    def texts(self, marks: Sequence[str], conditions: Sequence[str] = ()) -> Iterator[Any]:
        return iter(())

    def reasoned(self) -> Iterator[Any]:
        return iter(())

    def benchmark_results(self) -> list[dict[str, Any]]:
        return []

    def decoded_in(self) -> list[dict[str, Any]]:
        return [{"id": 1}]

    def flags(self, key: str, judges: Sequence[str]) -> Iterator[Any]:
        drawn = np.random.default_rng(int(1000 * uniform(key))).random((self.count, len(judges)))
        level = 0.3 + 0.4 * uniform(key)
        for i, (record, flags) in enumerate(zip(self.said, (drawn < level).tolist(), strict=True)):
            yield record.digest, i, 0, tuple(flags)

    def records(self, key: str, judges: Sequence[str]) -> Iterator[Any]:
        metrics = (20, 5.0, 0.9, 1.0, 0.0, 0)
        for _, i, sample, flags in self.flags(key, judges):
            yield i, sample, 20, "eos", *metrics, i % 7 - 3.0, 0.5, *flags

    def rewards(self, key: str) -> Iterator[Any]:
        return iter(())

    def min_tokens(self) -> int:
        return 0

    def content_digest(self) -> str:
        return "00"

    def canary_results(self) -> list[dict[str, Any]]:
        return []

    def note(self, name: str) -> Any:
        return {"identity": {}, "transforms": None, "shard": None}.get(name, "digest")

    def sessions(self) -> list[dict[str, Any]]:
        return []


@pytest.mark.slow
def test_ten_thousand_prompts_in_five_conditions() -> None:
    """50,000 completions stay under 80 MB: flags and figures in arrays, the resamples in pieces.

    Time is not asserted; one rate is made by hand.
    """
    store: Any = Large()
    conditions = [ALIGNED, BASE, *(Condition("ed", str(a)) for a in range(1, 4))]
    tracemalloc.start()
    summary = summarize(store, conditions, [Seat("a", "harm"), Seat("b", "harm")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print("PEAK", peak)
    assert peak < 80e6
    expected = clustered_rate([(int(flags[0]), 1) for _, _, _, flags in store.flags("ed@3", ["a", "b"])])
    assert summary.named("ed@3").rates["a"] == expected
    assert len(summary.tests) == 7
