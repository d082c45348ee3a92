"""One decode step can be read: it enters few files."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import eddecode
import eddecode_kernels
from eddecode import SamplingParams
from helpers import decoding

MAX_FILES = 17
PACKAGES = tuple(
    str(Path(module.__file__).parent) for module in (eddecode, eddecode_kernels) if module.__file__
)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_decode_step_enters_few_files(arch: str) -> None:
    """From `Engine.step` to the kernels and back, once prompts are read and everything is compiled."""
    params = SamplingParams(alpha=0.5, max_new_tokens=20, ignore_eos=True)
    prompts = [decoding.prompt(i, 5, 6) for i in range(3)]
    engine, sequences = decoding.sampler(arch)._submit(prompts, [params] * 3)
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
    assert len(files) <= MAX_FILES, sorted(files)
