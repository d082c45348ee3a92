"""What an α costs in scoring: T4 at 16 α's over T4 at one, and what reading a shared prompt once saves.

Both run in turn in one process. The ratios are of processor time, which a busy machine disturbs less than wall-clock
time; one thread by default for the same reason.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from benchmarks.measure import interleave, ratios, spread, timed
from benchmarks.pairs import DTYPES, SIZES, build
from benchmarks.tasks import TASKS, Work
from eddecode import RenderedPrompt, Sampler


def distinct_prompts(work: Work) -> list[RenderedPrompt]:
    """The work's prompts, each with a first token of its own, so that no two are equal."""
    return [
        RenderedPrompt((i, *prompt.base_ids[1:]), (i, *prompt.aligned_ids[1:]))
        for i, prompt in enumerate(work.prompts)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scoring", description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="130M")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    pair = build(options.size, options.dtype)
    sampler = Sampler(pair.model_pair())
    work = TASKS["T4"].work(pair)
    sampler.score(work.prompts[:1], work.completions[:1], work.alphas)  # warm up

    def seconds(alphas: Sequence[float], prompts: Sequence[RenderedPrompt]) -> float:
        return timed(lambda: sampler.score(prompts, work.completions, alphas), time.process_time)[0]

    found = interleave(
        {
            "one α": lambda: seconds(work.alphas[:1], work.prompts),
            "all α's": lambda: seconds(work.alphas, work.prompts),
            "distinct prompts": lambda: seconds(work.alphas[:1], distinct_prompts(work)),
        },
        options.rounds,
    )
    print(
        f"T4, {options.size}, {options.dtype}, {options.threads} thread(s), {options.rounds} rounds in turn"
    )
    for name, text in (
        ("all α's", f"{len(work.alphas)} α's over one"),
        ("distinct prompts", "a prompt per completion over shared prompts"),
    ):
        print(
            "{}: {median:.3f} ({min:.3f} to {max:.3f})".format(
                text, **spread(ratios(found[name], found["one α"]))
            )
        )
