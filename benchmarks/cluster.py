"""The plan of a cluster (`eddecode plan --cluster`) against a simulation and against an audit on this machine.

The simulation gives every completion a length of its own, shares the prompts out as shards do, and fills a slot as soon
as one is free; the plan knows the mean length alone. The audit is one of the bundled pair on one thread: the plan is
given step times that are measured first, and its decoding is compared with the processor time of the audit's.

    python -m benchmarks cluster
"""

from __future__ import annotations

import argparse
import heapq
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eddecode.audit.stats.cluster import GPUS, Steps, Work, plan_cluster
from eddecode.outputs import Completion

MEAN, LONGEST = 128.0, 256


def lengths(count: int, seed: int = 0) -> np.ndarray:
    """Lengths of completions: a geometric distribution that is cut at the longest, with a mean of about 128."""
    drawn = np.random.default_rng(seed).geometric(1 / 160, count)
    return np.minimum(drawn, LONGEST)


def simulated_hours(steps: Steps, work: Work, workers: int, rows: int, tokens: np.ndarray) -> float:
    """Until the last worker is done: each decodes its shard, the next completion in the first slot that is free."""
    slowest = 0
    for shard in range(workers):
        own = tokens.reshape(work.prompts, -1)[shard::workers].ravel()
        slots = [0] * min(rows, len(own))
        for length in own.tolist():
            heapq.heapreplace(slots, slots[0] + length)
        slowest = max(slowest, *slots)
    return slowest * steps.seconds(rows, work.weights) / 3600


def simulation(prompts: int = 10_000, counts: tuple[int, ...] = (1, 16, 256, 1024)) -> Iterator[str]:
    """Lines of a table: a million completions of a 7B pair, by the number of workers."""
    steps, each = GPUS["h200"].steps[0], 100
    tokens = lengths(prompts * each)
    work = Work(prompts, 10, 10, float(tokens.mean()), 13.2e9, longest=LONGEST)
    for workers in counts:
        plan = plan_cluster(work, steps, workers, 1)
        found = simulated_hours(steps, work, workers, 64, tokens)
        ratio = (plan.decoding + plan.last) / found
        yield f"| {workers} | {60 * (plan.decoding + plan.last):.2f} | {60 * found:.2f} | {ratio:.2f} |"


def measured(prompts: int) -> str:
    """A line on an audit of the bundled pair."""
    import torch

    from eddecode import ModelPair, Sampler, SamplingParams
    from eddecode.audit import AuditConfig
    from eddecode.audit import run as audit_run
    from eddecode.testbed.bundled import bundled_pair

    torch.set_num_threads(1)
    bundled = bundled_pair()
    sampler = Sampler(
        ModelPair.load(bundled.base, bundled.aligned), base_template=bundled.base_template, max_slots=64
    )
    texts = [f"good evening, where is my order {i}?" for i in range(prompts)]

    def timed(rows: int, tokens: int) -> float:
        params = SamplingParams(alpha=0.5, max_new_tokens=tokens, ignore_eos=True, logprobs=True)
        begun = time.process_time()
        sampler.generate(texts[:rows], params)
        return time.process_time() - begun

    timed(64, 2)
    steps = Steps(
        {rows: 1e3 * (timed(rows, 34) - timed(rows, 2)) / 32 for rows in (1, 8, 64)}, 0.0, "measured"
    )
    spent = 0.0

    class Timed:
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
            nonlocal spent
            begun = time.process_time()
            for completion in sampler.as_completed(prompts, params):
                spent += time.process_time() - begun
                found.append(len(completion.token_ids))
                yield completion
                begun = time.process_time()

    found: list[int] = []
    setattr(audit_run, "write_curve", lambda *_: [])  # noqa: B010
    with tempfile.TemporaryDirectory() as folder:
        config = AuditConfig(
            base=bundled.base,
            aligned=bundled.aligned,
            prompts=texts,
            alphas="0.3,0.6",
            samples=4,
            judges=("lexicon",),
            out=Path(folder) / "run",
            max_new_tokens=64,
        )
        audit_run.audit(config, sampler=Timed(), on_notice=lambda _: None)
    work = Work(prompts, 4, 4, float(np.mean(found)), 1e6, longest=max(found))
    plan = plan_cluster(work, steps, 1, 1)
    planned = 3600 * (plan.decoding + plan.last)
    times = ", ".join(f"{rows} rows {ms:.1f} ms" for rows, ms in steps.milliseconds.items())
    return (
        f"{len(found):,} completions of {np.mean(found):.1f} tokens; steps measured: {times}. Planned {planned:.1f} s, "
        f"decoding took {spent:.1f} s of one processor: ratio {planned / spent:.2f}"
    )


def main(arguments: list[str]) -> int:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompts", type=int, default=200, help="of the audit on this machine")
    options = parser.parse_args(arguments)
    print("| workers | planned, minutes | simulated, minutes | ratio |\n|---:|---:|---:|---:|")
    for line in simulation():
        print(line, flush=True)
    print(measured(options.prompts))
    return 0
