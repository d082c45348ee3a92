"""Prefill and handover against two plain calls of transformers' own `generate`."""

from __future__ import annotations

import pytest

from eddecode.audit.attacks import parse_attacks
from eddecode.audit.two_steps import TwoStepSampler
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams
from helpers import decoding
from helpers.reference import hf_greedy, log_softmax, next_logits

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12, logprobs=True)


def _two(name: str, sampler: Sampler) -> TwoStepSampler:
    return TwoStepSampler(sampler, parse_attacks([name])[0])


@pytest.mark.parametrize(("name", "first", "alpha"), [("prefill:4", 0, -1.0), ("handover:4", 1, 0.0)])
def test_greedy_tokens_and_their_probabilities_are_those_of_two_plain_calls(
    name: str, first: int, alpha: float
) -> None:
    pair = decoding.spoken_pair()
    sampler, prompts = Sampler(pair), ["where is it?", "hello", "the order"]
    params = GREEDY.replace(alpha=alpha)
    found = sorted(_two(name, sampler).as_completed(prompts, [params] * 3), key=lambda c: c.prompt_index)
    for prompt, completion in zip(prompts, found, strict=True):
        rendered = sampler.render(prompt)
        ids = (rendered.base_ids, rendered.aligned_ids)
        begun = hf_greedy(pair.models[first], ids[first], 4, pair.eos_ids[first])
        expected = list(begun)
        if begun[-1] not in pair.eos_ids[first]:
            then = 1 - first
            expected += hf_greedy(pair.models[then], [*ids[then], *begun], 8, pair.eos_ids[then])
        assert completion.token_ids == expected
        assert completion.alpha == alpha
        assert completion.text == pair.tokenizer.decode(expected, skip_special_tokens=True)
        for side, value in enumerate((completion.base_logprob, completion.aligned_logprob)):
            total = sum(
                float(log_softmax(next_logits(pair.models[side], [*ids[side], *expected[:i]]))[token])
                for i, token in enumerate(expected)
            )
            assert value == pytest.approx(total, abs=1e-3)
        assert completion.logprobs is not None
        assert len(completion.logprobs) == len(expected)


def test_a_given_text_is_the_beginning_and_counts_no_tokens_of_the_limit() -> None:
    pair = decoding.spoken_pair()
    sampler, text = Sampler(pair), "Sure, here"
    params = GREEDY.replace(alpha=-1.0, max_new_tokens=6)
    (found,) = _two(f"prefill={text}", sampler).as_completed(["hello"], [params])
    ids = pair.tokenizer(text, add_special_tokens=False)["input_ids"]
    rendered = sampler.render("hello")
    then = hf_greedy(pair.aligned, [*rendered.aligned_ids, *ids], 6, pair.eos_ids[1])
    assert found.token_ids == [*ids, *then]
    assert found.text.startswith(text)
    total = sum(
        float(log_softmax(next_logits(pair.base, [*rendered.base_ids, *found.token_ids[:i]]))[token])
        for i, token in enumerate(found.token_ids)
    )
    assert found.base_logprob == pytest.approx(total, abs=1e-3)


def test_the_beginning_is_the_base_models_own_of_that_sample() -> None:
    sampler = decoding.sampler()
    prompts = decoding.mixed_prompts(3)
    params = SamplingParams(alpha=-1.0, temperature=1.0, max_new_tokens=9, n=4, seed=3, ignore_eos=True)
    found = list(_two("prefill:3", sampler).as_completed(prompts, [params] * 3))
    base = sampler.generate(prompts, params.replace(alpha=0.0))
    begun = {(c.prompt_index, c.sample): c.token_ids[:3] for c in base}
    assert {(c.prompt_index, c.sample): c.token_ids[:3] for c in found} == begun
    assert all(len(c.token_ids) == 9 for c in found)
    again = list(_two("prefill:3", sampler).as_completed(prompts[:1], [params]))
    assert {c.sample: c.token_ids for c in again} == {
        c.sample: c.token_ids for c in found if c.prompt_index == 0
    }


def test_samples_with_one_beginning_go_on_differently() -> None:
    sampler = decoding.sampler()
    prompt = RenderedPrompt((5, 6), (7, 8))
    params = SamplingParams(alpha=-1.0, temperature=1.0, top_k=40, max_new_tokens=8, n=3, ignore_eos=True)
    pair = decoding.spoken_pair()
    found = list(_two("prefill=Sure", Sampler(pair)).as_completed(["hello"], [params]))
    assert len({tuple(c.token_ids) for c in found}) == 3
    assert len(list(_two("handover:2", sampler).as_completed([prompt], [params.replace(alpha=0.0)]))) == 3
