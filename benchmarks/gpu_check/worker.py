"""Does the stages in order, and writes the result of each to a file as soon as there is one."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import family_stages, kernel_stages, pair_stages, speculation_stage
from benchmarks.gpu_check.context import Context
from benchmarks.gpu_check.family_stages import StageError

TESTS_SECONDS = 130  # that their stage waits for them: less than its limit, so that what was found is kept
GPU_TESTS = (
    "tests/kernels/test_triton.py",
    "tests/kernels/test_triton_layers.py",
    "tests/execution/compiled/test_triton_backend.py",
    "tests/execution/test_cuda_graph_sampler.py",
)


class Tests:
    """Runs the tests that run on a GPU where there is one, beside the families: neither measures time.

    Args:
        folder: where their output goes.
    """

    def __init__(self, folder: Path) -> None:
        self.output = folder / "tests.txt"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start them, once."""
        if self._process is None:
            command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", *GPU_TESTS]
            with self.output.open("wb") as file:
                self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def families(self, context: Context) -> dict[str, Any]:
        """See `family_stages.families`."""
        if not context.dry:
            self.start()
        return family_stages.families(context)

    def tests(self, context: Context) -> dict[str, Any]:
        """How the tests ended, as far as they came."""
        if context.dry:
            return {"tests": "not in a dry run"}
        self.start()
        assert self._process is not None
        try:
            status = str(self._process.wait(timeout=TESTS_SECONDS))
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = f"nothing within {TESTS_SECONDS} s"
        lines = self.output.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if line.startswith(("FAILED", "ERROR")) or " passed" in line]
        found = {f"line {i}": line[:300] for i, line in enumerate((kept or lines)[-15:])}
        if status != "0":
            raise StageError(f"pytest ended with {status}; see {self.output}", found)
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
    "speculation": speculation_stage.speculation,
    "profile": pair_stages.profile,
    "long": pair_stages.long,
    "families": family_stages.families,
    "tests": lambda context: {},  # both are of `Tests`
    "alternatives": pair_stages.alternatives,
    "compiled": pair_stages.compiled,
}


def main(arguments: list[str]) -> None:
    """The folder for results, the pair's size, perhaps --dry, and the stages."""
    folder, size, *stages = arguments
    dry = "--dry" in stages
    device = torch.device("cpu") if dry else torch.device("cuda", 0)
    context = Context(device, torch.float32 if dry else torch.bfloat16, dry, size)
    # Each capture collects garbage first; it need not look through all of the libraries each time.
    gc.collect()
    gc.freeze()
    tests = Tests(Path(folder))
    own = {"families": tests.families, "tests": tests.tests} if "tests" in stages else {}
    for stage in (each for each in stages if each != "--dry"):
        _write(Path(folder), stage, _run(own.get(stage, STAGES[stage]), context))


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
