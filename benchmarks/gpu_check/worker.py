"""Does the stages in order, and writes the result of each to a file as soon as there is one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import family_stages, kernel_stages, pair_stages
from benchmarks.gpu_check.context import Context
from benchmarks.gpu_check.family_stages import StageError

GPU_TESTS = (
    "tests/kernels/test_triton.py",
    "tests/kernels/test_triton_layers.py",
    "tests/execution/compiled/test_triton_backend.py",
    "tests/execution/test_cuda_graph_sampler.py",
)


def tests(context: Context) -> dict[str, Any]:
    """The tests that run on a GPU where there is one."""
    if context.dry:
        return {"tests": "not in a dry run"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *GPU_TESTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [
        line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")) or " passed" in line
    ]
    found = {f"line {i}": line[:300] for i, line in enumerate(lines[-15:])}
    if done.returncode != 0:
        raise StageError(f"pytest ended with {done.returncode}: {done.stderr[-300:]}", found)
    return found


STAGES: dict[str, Callable[[Context], dict[str, Any]]] = {
    "environment": kernel_stages.environment,
    "trial": kernel_stages.trial,
    "bandwidth": kernel_stages.bandwidth,
    "sampling": kernel_stages.sampling,
    "products": kernel_stages.products,
    "attention": kernel_stages.attention,
    "build": pair_stages.build,
    "first": pair_stages.first,
    "entering": pair_stages.entering,
    "steps": pair_stages.steps,
    "tasks": pair_stages.tasks,
    "bits": pair_stages.bits,
    "profile": pair_stages.profile,
    "long": pair_stages.long,
    "families": family_stages.families,
    "alternatives": pair_stages.alternatives,
    "tests": tests,
}


def main(arguments: list[str]) -> None:
    """The folder for results, the pair's size, perhaps --dry, and the stages."""
    folder, size, *stages = arguments
    dry = "--dry" in stages
    device = torch.device("cpu") if dry else torch.device("cuda", 0)
    context = Context(device, torch.float32 if dry else torch.bfloat16, dry, size)
    for stage in (each for each in stages if each != "--dry"):
        _write(Path(folder), stage, _run(STAGES[stage], context))


def _run(stage: Callable[[Context], dict[str, Any]], context: Context) -> dict[str, Any]:
    start = time.perf_counter()
    result: dict[str, Any] = {"ok": True}
    try:
        result["found"] = stage(context)
    except StageError as error:
        result |= {"ok": False, "error": str(error), "found": error.found}
    except Exception as error:  # the other stages are still to be done
        result |= {
            "ok": False,
            "error": f"{type(error).__name__}: {error}"[:500],
            "trace": traceback.format_exc(),
        }
    if context.device.type == "cuda":
        torch.cuda.empty_cache()
    return result | {"seconds": time.perf_counter() - start}


def _write(folder: Path, stage: str, result: dict[str, Any]) -> None:
    """Whole or not at all: the parent reads it meanwhile."""
    partial = folder / f"{stage}.part"
    partial.write_text(json.dumps(result, default=str), encoding="utf-8")
    partial.rename(folder / f"{stage}.json")


if __name__ == "__main__":
    main(sys.argv[1:])
