"""With the compiled layers a completion has the same bits in any batch: not only its tokens, but what they cost."""

from __future__ import annotations

import json

import pytest
import torch

from eddecode import ModelPair, Sampler, SamplingParams
from eddecode.lab import bundled_pair
from eddecode_kernels.speed_check import is_faster_than_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alone_in_a_batch_and_with_guesses(dtype: torch.dtype) -> None:
    if not is_faster_than_torch(dtype):
        pytest.skip(
            "the compiled layers are not used on this machine: no compiler, or the library's are as fast"
        )
    ours = bundled_pair()
    pair = ModelPair.load(ours.base, ours.aligned, dtype=dtype)
    lines = ours.prompts.read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines[:12]]
    params = [
        SamplingParams(alpha=(0.1, 0.6, 2.0)[i % 3], max_new_tokens=30, seed=i, logprobs=True)
        for i in range(12)
    ]
    template = {"base_template": ours.base_template}
    sampler = Sampler(pair, **template)
    assert all(runner.layers.stack is not None for runner in sampler.runner.model_runners)  # type: ignore[attr-defined]
    assert all(one.batch_invariant for one in sampler.execution)
    together = sampler.generate(prompts, params)
    alone = Sampler(pair, **template)
    by_turns = [alone.generate(prompt, p)[0] for prompt, p in zip(prompts, params, strict=True)]
    narrow = Sampler(pair, **template, max_slots=5).generate(prompts, params)
    guessed = Sampler(pair, **template, max_slots=7, speculation="base").generate(prompts, params)
    for others in (by_turns, narrow, guessed):
        assert [c.token_ids for c in others] == [c.token_ids for c in together]
        assert [c.logprobs for c in others] == [c.logprobs for c in together]
