"""Starts the worker, enforces the time limits, and writes the results. It imports nothing that could fail."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

# Stage → seconds that it may take, cheapest first. With every limit reached the run is longer than eight minutes; the
# whole run ends at TOTAL all the same.
LIMITS = {
    "environment": 30,
    "trial": 90,
    "bandwidth": 30,
    "sampling": 120,
    "products": 75,
    "attention": 45,
    "build": 60,
    "first": 120,
    "entering": 30,
    "steps": 60,
    "tasks": 60,
    "bits": 75,
    "speculation": 60,
    "profile": 45,
    "long": 60,
    "families": 150,
    "tests": 150,
    "alternatives": 75,
    "compiled": 75,
}
NEEDS_PAIR = (
    *("first", "entering", "steps", "tasks", "bits", "speculation", "profile", "long", "alternatives"),
    "compiled",
)
TOTAL = 465  # seconds
POLL = 0.2
START_UP = 60  # seconds more for a worker's first stage: imports


def main(arguments: list[str]) -> int:
    """Run all stages; the exit code is 0 if all of them passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    parser.add_argument("--out", default="gpu-check", help="folder for gpu_check.json and the table")
    parser.add_argument("--stages", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--size", default="7B", help="of the pair, as in benchmarks.pairs")
    parser.add_argument(
        "--dry",
        action="store_true",
        help="tiny shapes on a CPU in Triton's interpreter: tests this code itself",
    )
    options = parser.parse_args(arguments)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    results = run_stages(options, out)
    (out / "gpu_check.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    from benchmarks.gpu_check.table import table

    text = table(results)
    (out / "gpu_check.txt").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0 if all(results[stage].get("ok") for stage in options.stages) else 1


def run_stages(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Results by stage. A worker does the stages in order; after a hang or a crash another one does the rest."""
    begun, left, results = time.monotonic(), list(options.stages), dict[str, Any]()
    while left:
        if time.monotonic() - begun > TOTAL:
            results |= {stage: {"ok": False, "error": "no time was left"} for stage in left}
            break
        folder = out / f"worker-{len(results)}"
        folder.mkdir(exist_ok=True)
        done = _watch(_start(options, left, folder), folder, left, begun)
        results |= done
        left = [stage for stage in left if stage not in results]
    return {stage: results[stage] for stage in options.stages}


def _start(options: argparse.Namespace, stages: list[str], folder: Path) -> subprocess.Popen[bytes]:
    needed = stages
    if "build" not in stages and set(stages) & set(NEEDS_PAIR):
        needed = ["build", *stages]  # after a crash the pair is built again
    command = [sys.executable, "-m", "benchmarks.gpu_check.worker", str(folder), options.size]
    command += ["--dry"] if options.dry else []
    return subprocess.Popen([*command, *needed], start_new_session=True)  # so that its children end with it


def _watch(worker: subprocess.Popen[bytes], folder: Path, stages: list[str], begun: float) -> dict[str, Any]:
    """Results of a worker until it ends, or until one of its stages takes too long."""
    results: dict[str, Any] = {}
    since = time.monotonic()
    while True:
        ended = worker.poll() is not None
        for path in folder.glob("*.json"):
            if path.stem not in results:
                results[path.stem] = json.loads(path.read_text(encoding="utf-8"))
                since = time.monotonic()
        missing = [stage for stage in stages if stage not in results]
        if ended or not missing:
            break
        slow = time.monotonic() - since > LIMITS[missing[0]] + (START_UP if len(results) == 0 else 0)
        if slow or time.monotonic() - begun > TOTAL:
            _end(worker)
            return results | {missing[0]: {"ok": False, "error": f"took longer than {LIMITS[missing[0]]} s"}}
        time.sleep(POLL)
    worker.wait()
    if missing and ended:
        _end(worker)
        results[missing[0]] = {"ok": False, "error": f"the process ended with {worker.returncode}"}
    return results


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End a worker and the processes that it started: they would go on to use the device."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.kill()
    worker.wait()
