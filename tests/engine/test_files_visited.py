"""One decode step can be read: it enters few files."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import eddecode
import eddecode_kernels
from eddecode import Sampler, SamplingParams
from eddecode.execution.compiled.cpu_backend import CpuBackend
from eddecode_kernels.layers_cpu import compiled_linear
from helpers import decoding

MAX_FILES = {"torch": 10, "compiled": 12}
"""Products in C++ and whole layers in C++ are two files, and so are their callers."""
PACKAGES = tuple(
    str(Path(module.__file__).parent) for module in (eddecode, eddecode_kernels) if module.__file__
)


@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_decode_step_enters_few_files(arch: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `Engine.step` to the kernels and back, once prompts are read and everything is compiled.

    Whether the model's layers are torch's or compiled ones depends on the processor: both are tried.
    """
    if compiled_linear(torch.zeros(1, 1), None, torch.float32) is None:
        pytest.skip("no C++ compiler: plain torch is used")
    monkeypatch.setattr(CpuBackend, "is_faster", lambda self, dtype: compiled)
    for module in ("compiled.replace", "patching"):
        monkeypatch.setattr(f"eddecode.execution.{module}.is_faster_than_torch", lambda dtype: compiled)
    params = SamplingParams(alpha=0.5, max_new_tokens=20, ignore_eos=True)
    prompts = [decoding.prompt(i, 5, 6) for i in range(3)]
    engine, sequences = Sampler(decoding.pair(arch))._submit(prompts, [params] * 3)
    for _ in range(4):
        engine.step()
    files: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGES):
            files.add(frame.f_code.co_filename)

    before, previous = [len(sequence.tokens) for sequence in sequences], sys.getprofile()
    sys.setprofile(note)
    try:
        engine.step()
    finally:
        sys.setprofile(previous)
    assert [len(sequence.tokens) - n for sequence, n in zip(sequences, before, strict=True)] == [1, 1, 1]
    assert any(file.endswith("engine.py") for file in files)
    assert len(files) <= MAX_FILES["compiled" if compiled else "torch"], sorted(files)
