"""Workers of Ray against one process: tokens per second, as a ratio, in interleaved rounds on this machine.

Every worker and the one process compute with the same number of threads. What is compared is decoding alone: the start
of Ray and of the models is timed apart. On a machine whose cores do other work too, the ratio says how much of them the
workers got.

    python -m benchmarks ray_workers --workers 2 --threads 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any


def main(arguments: list[str]) -> int:
    """Print the rates of each round and the median ratio; the tokens must be equal."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks ray_workers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker, and of the one process")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported; workers get it too
    import torch

    from eddecode import SamplingParams
    from eddecode.audit import AuditConfig
    from eddecode.audit.samplers import load_sampler
    from eddecode.integrations.ray_workers import RaySampler, Workers
    from eddecode.testbed.bundled import bundled_pair

    torch.set_num_threads(options.threads)
    pair = bundled_pair()
    config = AuditConfig(
        base=str(pair.base),
        aligned=str(pair.aligned),
        base_template=pair.base_template,
        dtype="float32",
        prompts=["hello"],
        out="unused",
        judges=("lexicon",),
    )
    prompts = [f"good evening, where is my kettle number {i}?" for i in range(options.prompts)]
    params = [SamplingParams(alpha=0.6, max_new_tokens=32, n=8, ignore_eos=True)] * len(prompts)
    begun = time.perf_counter()
    alone: Any = load_sampler(config)
    _ = alone.runner
    loaded = time.perf_counter()
    workers = RaySampler(config, "", Workers("local", options.workers))
    print(
        f"start: one process {loaded - begun:.1f} s, Ray with its workers {time.perf_counter() - loaded:.1f} s"
    )

    def rate(sampler: Any) -> tuple[float, list[Any]]:
        begun = time.perf_counter()
        found = list(sampler.as_completed(prompts, params))
        seconds = time.perf_counter() - begun
        ordered = sorted((c.prompt_index, c.sample, tuple(c.token_ids)) for c in found)
        return sum(len(c.token_ids) for c in found) / seconds, ordered

    ratios = []
    for sampler in (alone, workers):
        rate(sampler)  # what is made on first use
    for number in range(options.rounds):
        (one, tokens), (many, same) = rate(alone), rate(workers)
        assert tokens == same
        ratios.append(many / one)
        print(f"round {number + 1}: one process {one:,.0f} tokens/s, workers {many:,.0f}: {many / one:.2f}")
    print(
        f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), tokens equal"
    )
    return 0
