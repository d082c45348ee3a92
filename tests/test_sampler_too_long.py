"""Which prompts are too long for a pair, without decoding."""

from __future__ import annotations

from pathlib import Path

import pytest

from eddecode import ModelPair, Sampler, SamplingParams
from eddecode.errors import ContextError
from helpers import tiny


def test_too_long_names_what_generate_refuses(tmp_path: Path) -> None:
    pair = ModelPair.load(*tiny.save_pair(tmp_path, max_position_embeddings=64), dtype="float32")
    sampler = Sampler(pair, base_template="{prompt}")
    prompts, params = ["hello", "no " * 40, "x" * 5], SamplingParams(max_new_tokens=20)
    found = sampler.too_long(prompts, params)
    assert list(found) == [1]
    with pytest.raises(ContextError) as caught:
        sampler.generate(prompts, params)
    assert (caught.value.prompt_index, caught.value.reason) == (1, found[1].reason)
    assert not sampler.too_long("hello", params)
