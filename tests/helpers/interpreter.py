"""Tests of Triton kernels on a machine without a GPU run in Triton's interpreter, in a process of their own.

Triton chooses its interpreter when it is first imported. One process runs all of these files, as importing takes long.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch

from eddecode_kernels.layers_triton import kernels
from helpers.paths import ROOT

FILES = (
    "tests/kernels/test_interpreter_plans.py",
    "tests/kernels/test_triton.py",
    "tests/kernels/test_triton_layers.py",
    "tests/execution/compiled/test_triton_backend.py",
    "tests/execution/compiled/test_triton_on_a_simulated_gpu.py",
    "tests/benchmarks/test_gpu_check.py::test_a_dry_run_does_every_stage",
)
INTERPRETED = bool((kernels() or {}).get("interpreted"))
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
CAN_RUN = kernels() is not None and (INTERPRETED or DEVICE == "cuda")


def _dot_in_order(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    """A product of tiles whose sums go in the order of K: numpy's differ with the number of rows, a GPU's do not."""
    from triton.runtime.interpreter import TensorHandle

    total = d.data.copy()
    for k in range(a.data.shape[1]):
        total += a.data[:, k, None] * b.data[None, k]
    return TensorHandle(total, d.dtype.scalar)


class _BothNames:
    """Stands for a function that sees Triton's language as itself and as its core."""

    __globals__: ClassVar[dict[str, Any]] = {}


class _PatchOnce:
    """Patches Triton's functions once per launch, not for every call of a function within it, which takes longest.

    Functions of Triton's own library see them under another name, so both are patched.
    """

    def __init__(self, patch: Any) -> None:
        self.patch, self.depth, self.scope = patch, 0, None

    def __call__(self, function: Any) -> Any:
        if self.depth == 0:
            self.scope = self.patch(_BothNames)
        self.depth += 1
        return self

    def restore(self) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.scope.restore()


if INTERPRETED:
    import triton.language
    from triton.runtime import interpreter

    from helpers.fast_interpreter import speed_up

    speed_up()
    _BothNames.__globals__.update(tl=triton.language, core=triton.language.core)
    interpreter.InterpreterBuilder.create_dot = _dot_in_order
    interpreter._patch_lang = _PatchOnce(interpreter._patch_lang)

runs = pytest.mark.skipif(
    not CAN_RUN, reason="no CUDA device; tests/kernels/test_interpreter.py runs this one in the interpreter"
)


def run_files(*files: str) -> str:
    """Run test files in the interpreter; returns pytest's output.

    Raises:
        AssertionError: one failed.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning", "--durations=5"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *(str(ROOT / file) for file in files), *options],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout
