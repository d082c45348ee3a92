"""Kernels are compiled ahead by threads, each once, and are not launched meanwhile; errors are left to the launches."""

from __future__ import annotations

import threading
from typing import Any

import torch

from eddecode_kernels import triton_trial
from eddecode_kernels.launching import compile_ahead, launch_kernel, launching

CUDA = torch.device("cuda")  # what is compiled for; no kernel here needs it


class Kernel:
    """Stands for one of Triton's."""

    __name__ = "kernel"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.compiled: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []

    def warmup(self, *arguments: Any, grid: Any, **constants: Any) -> None:
        self.compiled.append((grid, *arguments, constants))
        if self.error is not None:
            raise self.error

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **constants: self.launched.append((grid, *arguments, constants))


def test_each_kind_of_launch_is_compiled_once_and_nothing_is_launched() -> None:
    kernel, x = Kernel(), torch.zeros(64)

    def run() -> None:
        for size in (1, 3, 5, 16, 32):
            launch_kernel(kernel, (size,), x, size, BLOCK=16)
        launch_kernel(kernel, (3,), x, 3, BLOCK=32)
        launch_kernel(kernel, (3,), x[1:], 3, BLOCK=16)  # aligned otherwise
        launch_kernel(kernel, (3,), x.double(), 3, BLOCK=16)

    compile_ahead(CUDA, run)
    assert not kernel.launched
    sizes = sorted(call[2] for call in kernel.compiled)
    assert sizes == [1, 3, 3, 3, 3, 16]
    launch_kernel(kernel, (3,), x, 3, BLOCK=16)
    assert kernel.launched == [((3,), x, 3, {"BLOCK": 16})]


def test_errors_are_left_to_the_launches() -> None:
    kernel = Kernel(ValueError("too much shared memory"))

    def run() -> None:
        launch_kernel(kernel, (1,), 2)
        raise RuntimeError("what is not computed is no number")

    compile_ahead(CUDA, run)
    launch_kernel(kernel, (1,), 2)
    assert len(kernel.compiled) == len(kernel.launched) == 1


def test_other_threads_and_trials_launch_meanwhile() -> None:
    kernel = Kernel()

    def run() -> None:
        other = threading.Thread(target=launch_kernel, args=(kernel, (1,), "by another thread"))
        other.start()
        other.join()
        with launching():
            launch_kernel(kernel, (1,), "by a trial")
        launch_kernel(kernel, (1,), "ahead")

    compile_ahead(CUDA, run)
    assert [call[1] for call in kernel.launched] == ["by another thread", "by a trial"]
    assert [call[1] for call in kernel.compiled] == ["ahead"]


def test_a_trial_within_it_is_a_real_one(monkeypatch: Any) -> None:
    """What a trial finds is kept: it must not be found on what was not computed."""
    kernel = Kernel()
    monkeypatch.setattr(triton_trial, "run_trial", lambda device, dtype: launch_kernel(kernel, (1,), "trial"))
    compile_ahead(CUDA, lambda: triton_trial.failure.__wrapped__(CUDA, torch.bfloat16))
    assert len(kernel.launched) == 1


def test_on_a_cpu_nothing_is_run() -> None:
    compile_ahead(torch.device("cpu"), lambda: 1 / 0)
