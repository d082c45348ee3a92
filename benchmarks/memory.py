"""Peak memory of one alternative, measured in a process of its own.

In the process that times them all, alternatives share the models and inherit each other's freed memory, so no figure
measured there belongs to one of them. Here a fresh interpreter runs the task on a toy pair (libraries load code and
start threads on first use), loads only the models that the alternative runs, and only then starts to count. So the
figure holds what the alternative keeps (packed weights, caches) and what it needs in between, and not the interpreter
and the libraries. The first run is counted. On the CPU it is resident memory: weights that were not touched before, and
pages that the C library keeps, make it uncertain by a few megabytes.

    python -m benchmarks memory                                   # eddecode's sweeps at 130M, a line for each
    python -m benchmarks memory '{"alternative": "eddecode", "task": "T1", "size": "10M", …}'      # one probe
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.process import status_bytes

TIMEOUT = 900
GOAL = 1.1  # of weights and used cache


@dataclass(frozen=True)
class Probe:
    """What to measure; the fields are those of the command line.

    `alphas`, `prompts`, `prompt_tokens` and `new_tokens` replace those of the task, where they are not 0.
    """

    alternative: str
    task: str
    size: str
    dtype: str
    variant: str
    device: str
    threads: int
    quick: bool = False
    alphas: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0

    def work(self, pair: Any) -> Any:
        """The work on a pair."""
        from benchmarks.pairs import texts_of
        from benchmarks.tasks import TASKS

        work = TASKS[self.task].work(pair, quick=self.quick)
        if self.prompts:
            length = self.prompt_tokens
            work = replace(work, prompts=texts_of(self.prompts, length, pair.base.config.vocab_size))
        if self.alphas:
            work = replace(work, alphas=tuple(0.125 * (i + 1) for i in range(self.alphas)))
        return replace(work, new_tokens=self.new_tokens or work.new_tokens)


# Beside T3: four batches of 64 rows, with prompts so long that the cache takes more memory than the weights.
LONG: dict[str, Any] = {"alphas": 16, "prompts": 16, "prompt_tokens": 256, "new_tokens": 32}


def measure(probe: Probe) -> dict[str, Any]:
    """Run a probe in a new process.

    Returns:
        {"weights", "extra", "peak", "needed"}, bytes: the parameters of the models that it ran; the peak on top of
        them; their sum; and the minimum that the work has to hold. Or {"error": why there is no figure}.
    """
    command = [sys.executable, "-m", "benchmarks", "memory", json.dumps(asdict(probe))]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            cwd=Path(__file__).parents[1],
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {TIMEOUT} s"}
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def run(probe: Probe) -> dict[str, Any]:
    """Run the probe in this process, which must be a fresh one."""
    from benchmarks.pairs import Shape, build
    from benchmarks.registry import ALTERNATIVES, OURS, do
    from benchmarks.roofline import all_weights, bytes_to_hold
    from benchmarks.tasks import NotAvailable
    from eddecode.sampler import MAX_SLOTS

    torch.set_num_threads(probe.threads)
    entry = ALTERNATIVES[probe.alternative]
    toy = build(Shape(64, 96, 2, 4, 300), probe.dtype, probe.variant, probe.device)
    with contextlib.suppress(NotAvailable):
        do(entry.make(toy), replace(probe, prompts=0).work(toy).shorter(4))
    del toy
    pair = build(probe.size, probe.dtype, probe.variant, probe.device, base_only=entry.models == 1)
    work = probe.work(pair)
    models = [model for model in (pair.base, pair.aligned)[: entry.models] if model is not None]
    before = start_counting(probe.device)
    try:
        do(entry.make(pair), work)
    except NotAvailable as why:
        return {"error": f"not available: {why}"}
    extra = peak_bytes(probe.device) - before
    weights = sum(map(all_weights, models))
    slots = MAX_SLOTS if probe.alternative == OURS else None  # more rows than that wait for a slot
    needed = bytes_to_hold(pair, work, entry.models, slots)
    return {"weights": weights, "extra": extra, "peak": weights + extra, "needed": needed}


def start_counting(device: str) -> int:
    """Reset the peak; returns the bytes in use now."""
    from eddecode.utils.memory import trim_heap

    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    trim_heap()  # so that what is needed later shows
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # 5: reset the peak (man 5 proc)
    return status_bytes("VmRSS")


def peak_bytes(device: str) -> int:
    """The most bytes in use since `start_counting`: resident on the CPU, allocated on a GPU."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return status_bytes("VmHWM")


def table(size: str = "130M") -> None:
    """Measure eddecode's sweeps, and print a line for each: megabytes at the peak, and their ratio to the minimum."""
    print(f"{'':34}{'weights':>9}{'needed':>9}{'peak':>9}   peak ÷ needed (goal: {GOAL})")
    sweeps: dict[str, dict[str, Any]] = {"T3": {}, "16 α's × 16 long prompts": LONG}
    for name, changes in sweeps.items():
        for dtype in ("bf16", "float32"):
            found = measure(
                Probe("eddecode", "T3", size, dtype, "full", "cpu", torch.get_num_threads(), **changes)
            )
            if "error" in found:
                print(f"{name}: {found['error']}")
                continue
            figures = "".join(f"{found[key] / 1e6:9,.0f}" for key in ("weights", "needed", "peak"))
            print(f"{name + ', ' + dtype:<34}{figures}   {found['peak'] / found['needed']:.3f}", flush=True)


def main(arguments: list[str]) -> None:
    """Measure the probe that the only argument describes, or without one print the table of sweeps."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("probe", nargs="?", type=json.loads, help="one probe, as JSON")
    probe = parser.parse_args(arguments).probe
    if probe:
        print(json.dumps(run(Probe(**probe))))
    else:
        table()
