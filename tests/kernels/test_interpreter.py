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

compiles = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the process without the interpreter compiles"
)


def compiled(*arguments: str) -> list[str]:
    """The lines that `helpers.triton_compile` prints."""
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "triton_compile.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@compiles
def test_the_kernels_of_real_models_compile_and_fit_into_their_gpus() -> None:
    """Into shared memory, and into registers: a tile that does not is many times slower."""
    lines = [line.split() for line in compiled()]
    assert {kernel for _, _, kernel, *_ in lines} == KERNELS
    assert {capability for _, capability, *_ in lines} == {"80", "89", "90", "100"}
    assert not [line for line in lines if line[-1] != "fits"]
    limit = {True: 1024, False: 64}  # bytes that a thread spills (Triton 3.6: 640); float32 is not for speed
    assert not [line for line in lines if int(line[5]) > limit["float32" in line[0]]]


@compiles
def test_a_pair_compiles_few_kernels_whatever_its_rows_and_positions() -> None:
    """Prompts and steps of any size; a kernel more would be about half a second more of a first call."""
    found = ast.literal_eval(compiled("count")[0])
    assert found == {
        **{"linear": 6, "rotate_and_write": 1, "gate": 1, "attend_tile": 1},
        "attend": 2,  # one chunk of keys, or more
        "join_chunks": 1,
        "add_and_norm": 3,  # with nothing to add, with both, and with no norm after the last layer
        **{"philox_uniforms": 1, "forbid": 1, "plausible_peak": 1, "contrast_part": 1, "pick": 1},
        **{"add_term": 2, "sweep": 2, "kept_mass": 2, "token_logprob": 1},
    }


@compiles
def test_a_thread_copies_sixteen_bytes_at_once() -> None:
    assert ast.literal_eval(compiled("copies")[0]) == {2: [2], 4: [4], 16: [16]}
