"""Large inputs and long runs: many equal prompts, prompts of a megabyte, memory and open files of a process."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

from benchmarks.process import status_bytes
from benchmarks.reliability.figure import Figure, count
from benchmarks.reliability.runs import config, run
from eddecode.audit.store.store import Store


def large_inputs(root: Path) -> list[Figure]:
    """20,000 equal prompts, and prompts of a megabyte."""
    begun = time.monotonic()
    equal = run(config(root / "equal", prompts=["the same"] * 20_000, samples=1, alphas="0.6"))
    then = time.monotonic()
    big = run(config(root / "big", prompts=[f"{i} " + "long " * 200_000 for i in range(10)], samples=1))
    many = f"20,000 equal prompts (60,000 completions, {then - begun:.0f} s): prompts that count"
    long = f"10 prompts of 1 MB ({time.monotonic() - then:.1f} s): prompts that count"
    return [count(many, equal.distinct_prompts, 1), count(long, big.distinct_prompts, 10)]


def long_runs(root: Path, completions: int) -> list[Figure]:
    """Memory and open files of one process that makes a run and goes on with it, from the first tenth to the end."""
    small = completions // 10 // 10
    run(config(root / "long", prompts=small, samples=2))
    memory, handles = _resident(), _open_files()
    run(config(root / "long", prompts=10 * small, samples=2), grow=True)
    grown, more = _resident() - memory, _open_files() - handles
    with Store.read(root / "long") as store:
        stored = store.count()
    each = grown / (stored * 0.9)
    return [
        Figure(
            f"{stored:,} completions in one process: memory after the last 90% of them",
            f"{grown / 2**20:+.1f} MiB ({each:+.0f} bytes each)",
            "below 4 kB each",
            each < 4096,
        ),
        Figure("… open files more than before", str(more), "0", more <= 0),
    ]


def _resident() -> int:
    """Bytes of this process in memory, without garbage."""
    gc.collect()
    return status_bytes("VmRSS")


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
