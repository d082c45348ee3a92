"""Runs the tests of the Triton layers in Triton's interpreter; and compiles the kernels for GPUs that are not there."""

from __future__ import annotations

import ast
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


KERNELS = {  # all that there are
    *(
        "linear",
        "add_low_rank",
        "rotate_and_write",
        "attend",
        "join_chunks",
        "attend_tile",
        "add_and_norm",
        "gate",
    ),
    *(
        "route",
        "count_pairs",
        "group_pairs",
        "expert_linear",
        "mix_experts",
        "copy_blocks",
        "philox_uniforms",
    ),
    *("add_term", "forbid", "plausible_peak", "contrast_part", "sweep", "kept_mass", "pick", "token_logprob"),
}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
def test_what_is_compiled_for_gpus() -> None:
    """In one process, as importing takes as long as compiling."""
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "triton_compile.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    count, copies, *lines = done.stdout.splitlines()
    check_that_kernels_fit_into_their_gpus([line.split() for line in lines])
    check_that_kernels_are_few(ast.literal_eval(count))
    assert ast.literal_eval(copies) == {2: [2], 4: [4], 16: [16]}  # a thread copies sixteen bytes at once


def check_that_kernels_fit_into_their_gpus(lines: list[list[str]]) -> None:
    """Into shared memory, and into registers: a tile that does not is many times slower."""
    assert {kernel for _, _, kernel, *_ in lines} == KERNELS
    assert {capability for _, capability, *_ in lines} == {"80", "89", "90", "100"}
    assert not [line for line in lines if line[-1] != "fits"]
    limit = {True: 1024, False: 64}  # bytes that a thread spills (Triton 3.6: 640); float32 is not for speed
    assert not [line for line in lines if int(line[5]) > limit["float32" in line[0]]]


def check_that_kernels_are_few(found: dict[str, int]) -> None:
    """Prompts and steps of any size; a kernel more would be about half a second more of a first call."""
    assert found == {
        **{"linear": 6, "rotate_and_write": 1, "gate": 1, "attend_tile": 1},
        "attend": 2,  # one chunk of keys, or more
        "join_chunks": 1,
        "add_and_norm": 3,  # with nothing to add, with both, and with no norm after the last layer
        **{"philox_uniforms": 1, "forbid": 1, "plausible_peak": 1, "contrast_part": 1, "pick": 1},
        **{"add_term": 2, "sweep": 2, "kept_mass": 2, "token_logprob": 1},
    }
