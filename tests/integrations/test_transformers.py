"""The contrast in `generate` of transformers: the Sampler's tokens, and a cache that follows what happens to rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eddecode import RenderedPrompt, SamplingParams
from eddecode.errors import ParamsError, PromptError
from eddecode.integrations.transformers import (
    ContrastLogitsProcessor,
    contrast_generate,
    prompts_for_generate,
)
from eddecode.sampling.contrast import contrast, pair_weights
from helpers.decoding import mixed_prompts, pair, sampler

PROMPTS = mixed_prompts(5)  # of different lengths, and different for the two models
NEW = 12


def expected(
    arch: str, alpha: float, prompts: list[RenderedPrompt] = PROMPTS, **changes: Any
) -> list[list[int]]:
    params = SamplingParams(**{"alpha": alpha, "temperature": 0, "max_new_tokens": NEW, **changes})
    return [completion.token_ids for completion in sampler(arch).generate(prompts, params)]


def processor(arch: str, alpha: float, aligned_ids: Any, **options: Any) -> ContrastLogitsProcessor:
    return ContrastLogitsProcessor(
        pair(arch).aligned, alpha, aligned_ids, vocabulary=pair(arch).vocabulary, **options
    )


def completions(found: torch.Tensor, prompt: int, eos: list[int] | None) -> list[list[int]]:
    """The ids after the prompt, up to the first EOS."""
    rows = []
    for row in found[:, prompt:].tolist():
        ends = [i for i, token in enumerate(row) if token in (eos or ())]
        rows.append(row[: ends[0] + 1] if ends else row)
    return rows


@pytest.mark.parametrize(
    ("arch", "alpha"),
    [("llama", -1.0), ("llama", 0.0), ("llama", 0.6), ("gpt2", 0.6), ("mistral", 0.6), ("gemma2", 0.6)],
)
def test_greedy_tokens_are_the_samplers(arch: str, alpha: float) -> None:
    inputs, aligned_ids = prompts_for_generate(sampler(arch), PROMPTS, alpha)
    base, length = pair(arch).base, inputs["input_ids"].shape[1]
    own = processor(arch, alpha, aligned_ids)
    by_processor = base.generate(**inputs, logits_processor=[own], max_new_tokens=NEW, do_sample=False)
    by_function = base.generate(
        **inputs,
        custom_generate=contrast_generate,
        sampler=sampler(arch),
        alpha=alpha,
        aligned_ids=aligned_ids,
        max_new_tokens=NEW,
        do_sample=False,
    )
    wanted = expected(arch, alpha)
    assert completions(by_processor, length, inputs["eos_token_id"]) == wanted
    assert completions(by_function, length, inputs["eos_token_id"]) == wanted


def recomputed(arch: str, alpha: float, aligned_ids: list[list[int]], length: int) -> Any:
    """A processor without a cache: the aligned model reads every row from its start."""

    def call(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows, share = [], len(input_ids) // len(aligned_ids)
        for place, row in enumerate(input_ids):
            ids = [*aligned_ids[place // share], *row[length:].tolist()]
            rows.append(pair(arch).aligned(torch.tensor([ids])).logits[0, -1])
        mixed = contrast([scores, torch.stack(rows)], pair_weights(alpha), pair(arch).vocabulary)
        return mixed.log_softmax(dim=-1)

    return call


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_beams_are_those_of_a_contrast_without_a_cache(arch: str) -> None:
    inputs, aligned_ids = prompts_for_generate(sampler(arch), PROMPTS[:3], 0.6)
    length = inputs["input_ids"].shape[1]
    settings = {**inputs, "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8, "do_sample": False}
    own = processor(arch, 0.6, aligned_ids)
    found = pair(arch).base.generate(**settings, logits_processor=[own])
    wanted = pair(arch).base.generate(
        **settings, logits_processor=[recomputed(arch, 0.6, aligned_ids, length)]
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("arch", ["llama", "mistral"])
def test_rows_may_be_reordered_dropped_repeated_and_go_back(arch: str) -> None:
    """Every step gives the contrast of a fresh reading, and reads one token per row where it can."""
    aligned_ids = [list(prompt.aligned_ids) for prompt in PROMPTS[:3]]
    base_ids = torch.tensor([[7, 8, 9], [7, 8, 10], [7, 8, 11]])  # as rows of a batch
    read: list[tuple[int, ...]] = []
    aligned = pair(arch).aligned
    own = processor(arch, 0.6, aligned_ids)
    hook = aligned.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    steps: list[list[tuple[int, list[int]]]] = [  # (prompt, completion) of each row
        [(0, []), (1, []), (2, [])],
        [(0, [20]), (1, [21]), (2, [22])],
        [(0, [20, 30]), (1, [21, 31]), (2, [22, 32])],
        [(2, [22, 32, 40]), (0, [20, 30, 41]), (1, [21, 31, 42])],  # reordered
        [(2, [22, 32, 40, 50]), (2, [22, 32, 40, 51])],  # one row twice, two dropped
        [(2, [22, 32, 40, 51, 60])],  # one left
        [(2, [22, 32, 70])],  # it goes back
        [(2, [22, 32, 70, 71, 72, 73])],  # several tokens at once
        [(0, []), (1, []), (2, [])],  # another call
    ]
    try:
        for step in steps:
            rows = torch.stack(
                [torch.cat([base_ids[p], torch.tensor(t, dtype=torch.int64)]) for p, t in step]
            )
            scores = torch.randn(len(rows), 300, generator=torch.Generator().manual_seed(len(read)))
            found = own(rows, scores)
            count = len(read)
            texts = [[*aligned_ids[p], *t] for p, t in step]
            logits = torch.stack([aligned(input_ids=torch.tensor([text])).logits[0, -1] for text in texts])
            del read[count:]
            wanted = contrast([scores, logits], pair_weights(0.6), pair(arch).vocabulary).log_softmax(-1)
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)
    finally:
        hook.remove()
    assert [shape[1] for shape in read[1:6]] == [1] * 5
    assert [shape[1] for shape in read[6:8]] == [1, 3]


def test_assisted_decoding_gives_the_same_tokens() -> None:
    alpha, prompt = 0.6, PROMPTS[2]
    inputs, aligned_ids = prompts_for_generate(sampler("llama"), [prompt], alpha)
    found = pair("llama").base.generate(
        **inputs,
        logits_processor=[processor("llama", alpha, aligned_ids)],
        prompt_lookup_num_tokens=3,
        max_new_tokens=NEW,
        do_sample=False,
    )
    assert completions(found, inputs["input_ids"].shape[1], inputs["eos_token_id"]) == expected(
        "llama", alpha, [prompt]
    )


def test_one_prompt_for_both_models() -> None:
    """Without `aligned_ids` the aligned model reads what the base reads, without its padding."""
    same = [RenderedPrompt(prompt.base_ids, prompt.base_ids) for prompt in PROMPTS[:3]]
    inputs, _ = prompts_for_generate(sampler("llama"), same, 0.6)
    own = processor("llama", 0.6, None, attention_mask=inputs["attention_mask"])
    found = pair("llama").base.generate(**inputs, logits_processor=[own], max_new_tokens=NEW, do_sample=False)
    length, eos = inputs["input_ids"].shape[1], inputs["eos_token_id"]
    assert completions(found, length, eos) == expected("llama", 0.6, same)
    by_function = pair("llama").base.generate(
        **inputs,
        custom_generate=contrast_generate,
        sampler=sampler("llama"),
        alpha=0.6,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert completions(by_function.sequences, length, eos) == expected("llama", 0.6, same)


def test_samples_of_custom_generate_are_the_samplers() -> None:
    inputs, aligned_ids = prompts_for_generate(sampler("llama"), PROMPTS[:2], 0.6)
    found = pair("llama").base.generate(
        **inputs,
        custom_generate=contrast_generate,
        sampler=sampler("llama"),
        alpha=0.6,
        aligned_ids=aligned_ids,
        seed=5,
        do_sample=True,
        temperature=0.8,
        top_k=40,
        num_return_sequences=3,
        max_new_tokens=NEW,
        repetition_penalty=1.3,
    )
    wanted = expected(
        "llama", 0.6, PROMPTS[:2], temperature=0.8, top_k=40, seed=5, n=3, repetition_penalty=1.3
    )
    assert completions(found, inputs["input_ids"].shape[1], inputs["eos_token_id"]) == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "generate was asked for beam_search; expected greedy search or sampling"),
        ({"no_repeat_ngram_size": 2}, "was given NoRepeatNGramLogitsProcessor"),
        ({"max_time": 5.0}, "was given MaxTimeCriteria"),
        ({"sampler": None}, "needs the sampler of this model's pair"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores is not available"),
    ],
)
def test_settings_that_the_sampler_does_not_have_are_errors(settings: dict[str, Any], message: str) -> None:
    inputs, _ = prompts_for_generate(sampler("llama"), PROMPTS[:1], 0.6)
    call = {**inputs, "custom_generate": contrast_generate, "sampler": sampler("llama"), "max_new_tokens": 4}
    with pytest.raises(ParamsError, match=message):
        pair("llama").base.generate(**{**call, **settings})


def test_prompts_that_do_not_fit_the_rows_are_errors() -> None:
    inputs, aligned_ids = prompts_for_generate(sampler("llama"), PROMPTS[:3], 0.6)
    own = processor("llama", 0.6, aligned_ids[:2])
    with pytest.raises(PromptError, match="the call has 3 rows and aligned_ids has 2 prompts"):
        pair("llama").base.generate(**inputs, logits_processor=[own], max_new_tokens=4)
    with pytest.raises(ParamsError, match="alpha is nan"):
        processor("llama", float("nan"), aligned_ids)
