"""Does stages in order, and writes what each finds to files as soon as there is something: see `lane`."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.compiling import CompileTimes
from benchmarks.gpu_check.context import Context, Figures, StageError
from benchmarks.gpu_check.lane import AGAIN

StageFunction = Callable[[Context, Figures], None]
# Stage → the module of its function, imported by the first such stage: a module that cannot be costs no others.
FUNCTIONS = {
    **dict.fromkeys(("environment", "trial", "draws", "bandwidth", "sampling"), "kernel_stages"),
    **dict.fromkeys(("products", "attention"), "kernel_stages"),
    "first": "first_stage",
    **dict.fromkeys(("families", "more-families"), "family_stages"),
    "tests": "tests_stage",
    **dict.fromkeys(("build", "entering", "steps", "tasks", "bits", "profile"), "pair_stages"),
    "speculation": "speculation_stage",
    **dict.fromkeys(("long", "grouped"), "long_stages"),
    **dict.fromkeys(("lora", "experts"), "other_pairs"),
    **dict.fromkeys(("alternatives", "compiled"), "against_stages"),
}


def function_of(stage: str) -> StageFunction:
    """What does a stage."""
    module = import_module(f"benchmarks.gpu_check.{FUNCTIONS[stage]}")
    function: StageFunction = getattr(module, stage.replace("-", "_"))
    return function


def main(arguments: Sequence[str]) -> int:
    """Do stages; returns `AGAIN` if the device no longer works after one that failed, else 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("size")
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args(arguments)
    device = torch.device("cpu") if options.dry else torch.device("cuda", 0)
    dtype = torch.float32 if options.dry else torch.bfloat16
    context = Context(device, dtype, options.dry, options.size, options.out, options.dry and not options.full)
    known = json.loads((options.folder / "known").read_text(encoding="utf-8"))
    terabytes = (known.get("bandwidth") or {}).get("read, TB/s")
    context.bandwidth = None if terabytes is None else terabytes * 1e12
    # Each capture collects garbage first; it need not look through all of the libraries each time.
    gc.collect()
    gc.freeze()
    for stage in options.stages:
        (options.folder / f"{stage}.begun").touch()
        result = run_stage(stage, context, options.folder / f"{stage}.part")
        _write(options.folder / f"{stage}.json", result)
        if not result["ok"] and not works(context):
            return AGAIN
    return 0


def run_stage(stage: str, context: Context, partial: Path) -> dict[str, Any]:
    """What a stage found, and how it ended; `partial` has its figures meanwhile."""
    start = time.perf_counter()
    found, compiled = Figures(lambda figures: _write(partial, figures)), CompileTimes()
    result: dict[str, Any] = {"ok": True, "found": found}
    try:
        function_of(stage)(context, found)
    except StageError as error:
        result |= {"ok": False, "error": str(error)}
    except Exception as error:  # the other stages are still to be done
        result |= {
            "ok": False,
            "error": f"{type(error).__name__}: {error}"[:500],
            "trace": traceback.format_exc(),
        }
    result |= {"kernels": len(compiled.seconds), "compiling": sum(compiled.seconds)}
    return result | {"seconds": time.perf_counter() - start}


def works(context: Context) -> bool:
    """Whether the device does what it is told, after a stage that failed: an illegal access, say, ends its context."""
    gc.collect()
    if context.device.type != "cuda":
        return True
    try:
        torch.cuda.empty_cache()
        value = torch.zeros(1, device=context.device)
        context.graphed(lambda: value.add_(1))()
        return float(value) >= 1
    except Exception:
        return False


def _write(path: Path, found: Any) -> None:
    """Whole or not at all: the parent reads it meanwhile."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(found, default=str), encoding="utf-8")
    partial.rename(path)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a device that no longer works would make a usual exit hang
