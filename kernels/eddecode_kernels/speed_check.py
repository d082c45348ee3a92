"""Whether the compiled linear layers are faster than torch's on this machine: measured once, and kept in a file.

That depends on the processor: with AVX-512 or AVX2 they are, with matrix units that only torch uses they are not.
"""

from __future__ import annotations

import contextlib
import json
import time
from functools import cache
from statistics import geometric_mean

import torch

from eddecode_kernels.jit import instruction_set, library_path, write_atomically
from eddecode_kernels.layers_cpu import compiled_linear

MIN_SPEEDUP = {1: 0.95, 8: 0.95, 64: 0.7}
"""Rows → the least ratio of torch's time to that of the compiled linear layer. A decode step has few rows; but where
the processor has matrix units that the compiled one does not use, a sweep's large batches must not lose by it. With one
row both may only wait for the memory."""
MIN_MEAN_SPEEDUP = 1.05  # geometric mean of these ratios
COLD_BYTES = 64 << 20  # more than a cache holds: in a decode step every weight comes from memory
ROUNDS = 7


@cache
def is_faster_than_torch(dtype: torch.dtype) -> bool:
    """Whether the compiled linear layer beats torch's here: measured once per machine, and kept beside the library."""
    if compiled_linear(torch.zeros(1, 1, dtype=dtype), None, dtype) is None:
        return False
    note = library_path().with_suffix(f".{str(dtype).removeprefix('torch.')}.json")
    try:
        return bool(json.loads(note.read_text())["pays"])
    except (OSError, ValueError, KeyError, TypeError):
        speedups = _measure_speedups(dtype)
    faster = all(speedups[str(rows)] > least for rows, least in MIN_SPEEDUP.items())
    faster = faster and geometric_mean(speedups.values()) > MIN_MEAN_SPEEDUP
    with contextlib.suppress(OSError):
        found = {"instruction_set": instruction_set(), "torch_over_compiled": speedups, "pays": faster}
        write_atomically(note, json.dumps(found))
    return faster


def _measure_speedups(dtype: torch.dtype) -> dict[str, float]:
    """Processor time of torch over that of the compiled linear layer, by rows; weights are not in the cache.

    The least of several rounds on one thread, in processor time: on a busy machine two threads mostly measure how long
    they wait for each other, and what other programs do to the memory only ever adds.
    """
    weights = [
        torch.ones(1024, 1024, dtype=dtype) for _ in range(COLD_BYTES // (1024 * 1024 * dtype.itemsize))
    ]
    compiled = [linear for w in weights if (linear := compiled_linear(w, None, dtype)) is not None]
    speedups = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for rows in MIN_SPEEDUP:
        some = slice(max(1, 8 * len(weights) // max(rows, 8)))  # the more rows, the longer each takes
        x = torch.ones(rows, 1024, dtype=dtype)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            start = time.thread_time()
            for w in weights[some]:
                torch.nn.functional.linear(x, w)
            middle = time.thread_time()
            for linear in compiled[some]:
                linear(x)
            times[0].append(middle - start)
            times[1].append(time.thread_time() - middle)
        speedups[str(rows)] = min(times[0]) / min(times[1])
    torch.set_num_threads(threads)
    return speedups
