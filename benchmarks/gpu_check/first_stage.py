"""The stage that measures a first call: with nothing in Triton's cache, and again in a second process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from benchmarks.gpu_check.context import Context, Figures, StageError

SECONDS = 55  # for each process
CALL = "make the sampler and call it, s"
COMPILING = "compiling in a first call, s by the clock"


def first(context: Context, found: Figures) -> None:
    """What compiling takes in a first process, and in a second one, which finds it in the cache on the disk."""
    if context.dry:
        found.put(dict.fromkeys((COMPILING, "second process · kernels compiled"), 0))
        return
    with tempfile.TemporaryDirectory() as cache:
        tokens = [_process(f"{which} process", cache, context, found) for which in ("first", "second")]
    first_call, second_call = (found[f"{which} process · {CALL}"] for which in ("first", "second"))
    found[COMPILING] = first_call - second_call
    if tokens[0] != tokens[1]:
        raise StageError("the second process decodes other tokens than the first")


def _process(name: str, cache: str, context: Context, found: Figures) -> list[list[int]]:
    command = [sys.executable, "-m", "benchmarks.gpu_check.first_call", context.size]
    environment = {**os.environ, "TRITON_CACHE_DIR": cache}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise StageError(f"the {name} took longer than {SECONDS} s") from error
    if done.returncode != 0:
        raise StageError(f"the {name} ended with {done.returncode}: {done.stderr[-400:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    found.put({f"{name} · {key}": value for key, value in answer["found"].items()})
    tokens: list[list[int]] = answer["tokens"]
    return tokens
