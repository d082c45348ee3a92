"""What an α costs when completions are scored: T4 at 16 α's over T4 at one, and what reading a prompt once saves.

`python -m benchmarks scoring --dtype bf16` runs both in turn in one process and prints processor-time ratios, which a
busy machine disturbs less than wall-clock ones; one thread by default for the same reason.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.pairs import DTYPES, SIZES, build
from benchmarks.tasks import TASKS, Work
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one run."""
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[float]:
    """Time of the second over time of the first, run in turn."""
    pairs = [(seconds(first), seconds(second)) for _ in range(rounds)]
    return [b / a for a, b in pairs]


def told(name: str, found: list[float]) -> str:
    """A line: median and range."""
    return f"{name}: {statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def apart(work: Work) -> list[RenderedPrompt]:
    """The work's prompts with a first token of their own each: no two are the same any more."""
    return [
        RenderedPrompt((i, *prompt.base_ids[1:]), (i, *prompt.aligned_ids[1:]))
        for i, prompt in enumerate(work.prompts)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="130M")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    pair = build(options.size, options.dtype)
    sampler = Sampler(pair.model_pair())
    work = TASKS["T4"].work(pair)

    def run(
        alphas: Sequence[float], prompts: Sequence[RenderedPrompt] = work.prompts
    ) -> Callable[[], object]:
        return lambda: sampler.score(prompts, work.completions, alphas)

    sampler.score(work.prompts[:1], work.completions[:1], work.alphas)
    print(
        f"T4, {options.size}, {options.dtype}, {options.threads} thread(s), {options.rounds} rounds in turn"
    )
    one = work.alphas[:1]
    print(told(f"{len(work.alphas)} α's over one", ratios(run(one), run(work.alphas), options.rounds)))
    print(
        told(
            "a prompt per completion over shared prompts",
            ratios(run(one), run(one, apart(work)), options.rounds),
        )
    )
