"""Runs the tests of the Triton layers in Triton's interpreter; and compiles the kernels for GPUs that are not there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip(
    "triton", reason="triton is not installed: pip install triton (the CPU build of torch lacks it)"
)

from helpers.interpreter import CAN_RUN, FILES, run_files
from helpers.paths import ROOT


@pytest.mark.slow
@pytest.mark.skipif(CAN_RUN, reason="these tests run in this process")
def test_the_layers_pass_in_the_interpreter() -> None:
    passed = run_files(*FILES)
    assert int(passed.split(" passed")[0].split()[-1]) >= 60


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the process without the interpreter compiles"
)
def test_the_kernels_compile_and_fit_into_the_shared_memory_of_three_gpus() -> None:
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "triton_compile.py"), "80", "90", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(lines) == 3 * 18
    assert all(line.endswith(" fits") for line in lines), done.stdout
