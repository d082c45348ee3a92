"""How many threads torch and the compiled kernels compute with on a CPU.

torch takes one per core of the machine. In a container that may use less, or beside other programs, threads then wait
for each other at the end of every small operation, and a decode step, which has some two hundred of them, takes up to
ten times as long. So the count is limited to what the process may use, and chosen by a short trial, once per process;
what the user has set is kept. With the compiled layers no bit of a result depends on the count.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from eddecode.utils.control_groups import control_group_folders

VARIABLES = ("EDDECODE_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")  # by which users set the count
SMT = Path("/sys/devices/system/cpu/smt/active")
ROUNDS = 7
WORTH = 0.9  # of the time with fewer threads: what more threads must stay below
_WIDTH, _PRODUCTS = 1024, 8  # of the trial: about as many small products as a layer or two


@dataclass(frozen=True)
class ThreadChoice:
    """How many threads are used, and why.

    Attributes:
        threads: the count.
        allowed: processors that this process may use: by its affinity, and by the limits of its container.
        cores: of the machine.
        why: for people.
        milliseconds: of the trial, by count of threads, the median; empty where there was no trial.
    """

    threads: int
    allowed: int
    cores: int
    why: str
    milliseconds: dict[int, float] = field(default_factory=dict)


def allowed_threads() -> int:
    """Processors that this process may use: those of its affinity, or less where its container has a quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas())]))


def set_by_user() -> tuple[str, int] | None:
    """(variable, count) by which the user has set the number of threads; None: by none."""
    for name in VARIABLES:
        value = os.environ.get(name, "").split(",")[0]
        if value.isdigit() and int(value) > 0:
            return name, int(value)
    return None


def _quotas() -> Iterator[float]:
    """Processors that each control group of this process allows, where it has a limit (version 1 or 2)."""
    for folder, version in control_group_folders("cpu"):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


@cache
def thread_choice() -> ThreadChoice:
    """The count for this process, chosen on the first call; nothing is set (see `use_chosen_threads`)."""
    allowed, cores, now = allowed_threads(), os.cpu_count() or 1, torch.get_num_threads()
    if (own := set_by_user()) is not None:
        name, threads = own
        return ThreadChoice(threads if name == "EDDECODE_THREADS" else now, allowed, cores, f"set by {name}")
    if now not in _defaults(cores):
        return ThreadChoice(now, allowed, cores, "set by the program")
    if allowed == 1:
        return ThreadChoice(1, allowed, cores, "the process may use one processor")
    times = measure(candidates(allowed), _product_step())
    best = fewest_that_pay(times)
    why = "the fastest of a short trial" if best > 1 else "more threads were not faster in a short trial"
    return ThreadChoice(best, allowed, cores, why, {count: 1e3 * seconds for count, seconds in times.items()})


def use_chosen_threads() -> ThreadChoice:
    """Set torch's number of threads to the choice, for this process, and return it."""
    choice = thread_choice()
    if choice.threads != torch.get_num_threads():
        torch.set_num_threads(choice.threads)
    return choice


def candidates(allowed: int) -> list[int]:
    """Counts to try: powers of two, and all that are allowed."""
    return sorted({*(1 << i for i in range(allowed.bit_length()) if 1 << i <= allowed), allowed})


def measure(counts: list[int], step: Callable[[], object]) -> dict[int, float]:
    """Median seconds of `step` by number of threads, interleaved; torch's number of threads is put back at the end."""
    before = torch.get_num_threads()
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    try:
        for number in range(ROUNDS + 1):
            for count in counts:
                torch.set_num_threads(count)
                start = time.perf_counter()
                step()
                if number:  # the first round starts the threads
                    seconds[count].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {count: statistics.median(taken) for count, taken in seconds.items()}


def fewest_that_pay(seconds: dict[int, float]) -> int:
    """The count to use: more threads only where they are clearly faster than fewer."""
    best = min(seconds)
    for count in sorted(seconds):
        if seconds[count] < WORTH * seconds[best]:
            best = count
    return best


def _defaults(cores: int) -> set[int]:
    """What torch takes by itself: the processors of its affinity, or one per two where cores have two threads."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    try:
        halved = SMT.read_text().strip() == "1"
    except OSError:
        halved = False
    return {cores, affinity, *({cores // 2, affinity // 2} if halved else ())}


def _product_step() -> Callable[[], object]:
    """Products of one row, each waiting for the one before, as in a decode step."""
    weights = [torch.full((_WIDTH, _WIDTH), 1 / _WIDTH) for _ in range(_PRODUCTS)]

    def step() -> torch.Tensor:
        x = torch.ones(1, _WIDTH)
        for weight in weights:
            x = torch.nn.functional.linear(x, weight)
        return x

    return torch.inference_mode()(step)
