"""The same work by transformers, interleaved with ours."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.alternatives import BaseAlone, ProcessorPair
from benchmarks.compiled import StaticProcessorPair
from benchmarks.gpu_check.context import Context, Figures
from benchmarks.gpu_check.pair_stages import work_of
from benchmarks.registry import Eddecode
from benchmarks.tasks import Work

EAGER_PAIR, ONE_MODEL = "(b) pair, eager", "(c) one model's generate"
COMPILED_PAIR = "(e) pair, compiled by torch"
# Task, its name in the table, and tokens: few, as (b) takes 50 ms for each of a sweep's steps and α's.
AMOUNTS = (("T1", "T1", 32), ("T3", "T3, a sweep", 16), ("T2", "T2", 32))
ROUNDS = 2


def alternatives(context: Context, found: Figures) -> None:
    """Two models in eager transformers (b), and `generate` of one of them (c)."""
    pair = context.pair
    ours = Eddecode(pair, lambda _: context.sampler)
    others: dict[str, Any] = {EAGER_PAIR: ProcessorPair(pair), ONE_MODEL: BaseAlone(pair)}
    for task, title, new in AMOUNTS[:1] if context.brief else AMOUNTS:
        work = work_of(context, task, new)
        for name, other in others.items():
            other.complete(work.shorter(2, 1))
            compare(context, found, f"{title} · {name}", work, ours, other)


def compiled(context: Context, found: Figures) -> None:
    """Two models compiled by torch: compiling takes most of the stage."""
    if context.brief:
        return
    pair, work = context.pair, work_of(context, "T1")
    ours, theirs = Eddecode(pair, lambda _: context.sampler), StaticProcessorPair(pair)
    found["first call, s"] = context.seconds(lambda: theirs.complete(work), 1)
    compare(context, found, f"T1 · {COMPILED_PAIR}", work, ours, theirs)


def compare(context: Context, found: Figures, name: str, work: Work, ours: Any, other: Any) -> None:
    """Seconds of both, one after the other in each round, and the ratio within the rounds."""
    ours.complete(work)  # captures what it needs
    times: list[tuple[float, float]] = []
    for _ in range(1 if context.dry else ROUNDS):
        times.append(
            (
                context.seconds(lambda: ours.complete(work), 1),
                context.seconds(lambda: other.complete(work), 1),
            )
        )
    found[f"{name} ÷ ours"] = statistics.median(theirs / own for own, theirs in times)
    found[f"{name}, tokens a second"] = work.tokens / min(theirs for _, theirs in times)
    found[f"{name}: ours, tokens a second"] = work.tokens / min(own for own, _ in times)
