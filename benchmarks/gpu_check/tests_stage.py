"""The tests that run on a GPU where there is one, in a process of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu_check.context import Context, Figures, StageError

SECONDS = 140  # less than the stage's limit, so that what was found is kept
WORKERS = 4  # where pytest-xdist is installed: most of the time is compiling
ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "tests/kernels/test_triton.py",
    "tests/kernels/test_triton_layers.py",
    "tests/execution/compiled/test_triton_backend.py",
    "tests/execution/test_cuda_graph_sampler.py",
)


def tests(context: Context, found: Figures) -> None:
    """How the tests ended, as far as they came; their output is in tests.txt."""
    if context.dry:
        found.put({"tests passed": 0, "tests failed": 0})
        return
    if find_spec("pytest") is None:
        raise StageError("pytest is not installed; pip install pytest")
    output = context.out / "tests.txt"
    command = [sys.executable, "-m", "pytest", "-v", "-rfE", "-p", "no:cacheprovider", *FILES]
    command += ["-n", str(WORKERS)] if find_spec("xdist") else []
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            status = f"ended with {process.wait(timeout=SECONDS)}"
        except subprocess.TimeoutExpired:
            process.kill()
            status = f"took more than {SECONDS} s"
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    found.put({f"tests {kind}": count for kind, count in counts(lines).items()})
    for i, line in enumerate([line for line in lines if line.startswith(("FAILED", "ERROR"))][:12]):
        found[f"failed {i + 1}"] = line[:300]
    if status != "ended with 0":
        raise StageError(f"pytest {status}; see {output.name}")


def counts(lines: list[str]) -> dict[str, int]:
    """Tests by how they ended, off the lines that pytest prints for each (-v), with xdist or without."""
    states = [
        match[1] for line in lines if (match := re.search(r"::.* (PASSED|FAILED|ERROR|SKIPPED)\b", line))
    ]
    states += [
        match[1]
        for line in lines
        if (match := re.match(r"\[gw\d+\].* (PASSED|FAILED|ERROR|SKIPPED) tests/", line))
    ]
    counted = {"passed": states.count("PASSED"), "skipped": states.count("SKIPPED")}
    return counted | {"failed": states.count("FAILED") + states.count("ERROR")}
