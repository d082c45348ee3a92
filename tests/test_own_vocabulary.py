"""The vocabulary that may be sampled is that of the models with a weight: at α = −1 the aligned model's own ids too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from eddecode import Access, Ensemble, ModelPair, Sampler, SamplingParams, Transfer
from eddecode.errors import PromptError
from helpers import decoding, tiny

WIDE = 310  # ids of the wider model; 300 to 304 are tokens of its own, the others padding


def boosted(model: Any, ids: Sequence[int]) -> Any:
    """The model with an output that likes some ids."""
    with torch.no_grad():
        model.lm_head.weight[list(ids)] *= 3
    return model


def tokenizers() -> tuple[Any, Any]:
    return tiny.tiny_tokenizer(), tiny.tiny_tokenizer(extra=tuple(f"<|own {i}|>" for i in range(5)))


def wider_aligned(base_width: int = 300) -> ModelPair:
    narrow = tiny.tiny_model(vocab=base_width)
    wide = boosted(tiny.tiny_model(vocab=WIDE, seed=1), range(300, 305))
    return ModelPair.from_models(narrow, wide, *tokenizers())


def wider_base() -> ModelPair:
    wide = boosted(tiny.tiny_model(vocab=WIDE, seed=1), range(300, 305))
    return ModelPair.from_models(wide, tiny.tiny_model(vocab=300), *reversed(tokenizers()))


@torch.inference_mode()
def greedy(model: Any, ids: tuple[int, ...], count: int, known: int) -> list[int]:
    """What one model writes alone, of the ids that its tokenizer knows; recomputed at every token."""
    text, out = list(ids), []
    for _ in range(count):
        out.append(int(model(input_ids=torch.tensor([text])).logits[0, -1, :known].argmax()))
        text.append(out[-1])
    return out


@pytest.mark.parametrize("speculation", ["off", "base", "auto"])
@pytest.mark.parametrize("base_width", [300, WIDE])
def test_alpha_minus_1_is_the_aligned_model_alone(base_width: int, speculation: str) -> None:
    """Also where the base has no embedding for what it writes."""
    pair = wider_aligned(base_width)
    prompts = decoding.mixed_prompts(5)
    params = SamplingParams(alpha=-1.0, temperature=0.0, max_new_tokens=12, ignore_eos=True)
    done = Sampler(pair, speculation=speculation).generate(prompts, params)
    for completion, prompt in zip(done, prompts, strict=True):
        assert completion.token_ids == greedy(pair.aligned, prompt.aligned_ids, 12, 305)
    assert any(token >= 300 for completion in done for token in completion.token_ids)


def test_alpha_0_is_the_base_alone_and_its_own_tokenizer_decodes_it() -> None:
    pair = wider_base()
    prompts = decoding.mixed_prompts(5)
    params = SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True)
    done = Sampler(pair).generate(prompts, params)
    for completion, prompt in zip(done, prompts, strict=True):
        assert completion.token_ids == greedy(pair.base, prompt.base_ids, 12, 305)
        assert completion.text == pair.base_tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    assert any(token >= 300 for completion in done for token in completion.token_ids)


def test_between_them_only_what_both_know_is_sampled_in_one_batch_with_the_others() -> None:
    pair = wider_aligned()
    prompts = decoding.mixed_prompts(6)
    params = [
        SamplingParams(alpha=alpha, temperature=2.0, max_new_tokens=20, n=3, ignore_eos=True, seed=5)
        for alpha in (-1.0, 0.0, 0.5, -0.5, -1.0, 2.0)
    ]
    together = Sampler(pair).generate(prompts, params)
    for i, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
        alone = Sampler(pair, max_slots=2).generate(prompt, each)
        mine = [completion for completion in together if completion.prompt_index == i]
        assert decoding.tokens(mine) == decoding.tokens(alone)
        assert [c.aligned_logprob for c in mine] == pytest.approx(
            [c.aligned_logprob for c in alone], abs=1e-3
        )
        own = any(token >= 300 for completion in mine for token in completion.token_ids)
        assert own == (each.alpha == -1.0)


def test_the_base_gives_such_a_completion_no_probability() -> None:
    pair = wider_aligned()
    done = Sampler(pair).generate(
        decoding.prompt(1, 5, 5),
        SamplingParams(alpha=-1.0, temperature=2.0, max_new_tokens=20, n=8, ignore_eos=True),
    )
    for completion in done:
        if max(completion.token_ids) >= 300:
            assert completion.base_logprob == -float("inf")
        assert completion.aligned_logprob > -1000


def test_where_access_ends_the_ids_stay_those_that_both_know() -> None:
    """One tokenizer decodes the whole completion."""
    pair = wider_base()
    params = SamplingParams(
        alpha=0.5, temperature=2.0, max_new_tokens=24, n=12, ignore_eos=True, access=Access(tokens=6)
    )
    done = Sampler(pair).generate(decoding.prompt(1, 5, 5), params)
    assert all(token < 300 for completion in done for token in completion.token_ids)


def test_suppressed_and_filtered_ids_stay_so() -> None:
    pair = wider_aligned()
    params = SamplingParams(
        alpha=-1.0, temperature=2.0, max_new_tokens=20, n=6, ignore_eos=True, suppress_tokens=(300, 301, 302)
    )
    done = Sampler(pair).generate(decoding.prompt(1, 5, 5), params)
    found = {token for completion in done for token in completion.token_ids}
    assert not found & {300, 301, 302}
    assert found & {303, 304}


def test_groups_of_more_models() -> None:
    base, (plain, more) = tiny.tiny_model(), tokenizers()
    wide = [boosted(tiny.tiny_model(vocab=WIDE, seed=i), range(300, 305)) for i in (1, 2)]
    ensemble = Ensemble.from_models(base, wide, plain, [more, more])
    steered = Transfer.from_models(wide[0], base, tiny.tiny_model(seed=5), more, plain, plain)
    prompts = [decoding.prompt(1, 5, 7)]
    params = SamplingParams(temperature=2.0, max_new_tokens=20, n=8, ignore_eos=True)
    for group, alpha, own in (
        (ensemble, -1.0, True),
        (ensemble, 0.3, False),
        (steered, 0.0, True),
        (steered, 0.3, False),
    ):
        done = Sampler(group).generate(prompts, params.replace(alpha=alpha))
        assert any(token >= 300 for completion in done for token in completion.token_ids) == own


def test_control_tokens_under_two_names_are_masked_and_a_common_end_is_not() -> None:
    """R1-Distill over Qwen: the same ids under other names, one of which ends a text of both."""
    base, aligned = tiny.tiny_pair_models(vocab=303)
    first = tiny.tiny_tokenizer(extra=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    second = tiny.tiny_tokenizer(extra=("<|end of sentence|>", "<|User|>", "<|Assistant|>"))
    first.eos_token, second.eos_token = "<|endoftext|>", "<|end of sentence|>"
    pair = ModelPair.from_models(base, aligned, first, second)
    assert [i for i in range(303) if not pair.vocabulary[i]] == [301, 302]
    notes = [str(note) for note in pair.notes]
    assert any("3 control ids have two names: id 300 is '<|endoftext|>' in base" in note for note in notes)
    assert any("ids that end a text of both models have two names" in note for note in notes)
    done = Sampler(pair).generate(
        decoding.prompt(1, 5, 5), SamplingParams(alpha=0.5, temperature=4.0, max_new_tokens=99, n=16)
    )
    assert any(completion.token_ids[-1] == 300 for completion in done)


@pytest.mark.parametrize("base_width", [300, WIDE])
def test_what_one_model_alone_can_write_is_scored(base_width: int) -> None:
    """As it was sampled; the base, and every contrast with it, rules the own ids out."""
    pair = wider_aligned(base_width)
    prompt = decoding.prompt(1, 5, 5)
    params = SamplingParams(
        alpha=-1.0, temperature=1.5, max_new_tokens=16, n=6, ignore_eos=True, logprobs=True
    )
    sampler = Sampler(pair)
    done = sampler.generate(prompt, params)
    assert any(max(c.token_ids) >= 300 for c in done)
    alphas = (-1.0, 0.0, 0.5)
    scores = sampler.score([prompt], [done], alphas, tokens=True)
    for score, completion in zip(scores, done, strict=True):
        assert score.aligned_logprob == pytest.approx(completion.aligned_logprob, abs=1e-3)
        assert completion.logprobs is not None
        sampled = sum(token.contrast for token in completion.logprobs)
        assert score.logprobs[0] == pytest.approx(sampled, abs=1e-3)
        own = max(completion.token_ids) >= 300
        assert (score.base_logprob == -float("inf")) == (
            own and base_width == 300
        )  # else it has padding there
        assert [value == -float("inf") for value in score.logprobs] == [False, own, own]
    assert scores.depth.count[0] == 6


def test_at_alpha_0_the_scores_are_over_the_ids_of_the_base() -> None:
    pair = wider_base()
    prompt = decoding.prompt(1, 5, 5)
    params = SamplingParams(temperature=1.0, max_new_tokens=12, n=4, ignore_eos=True, logprobs=True)
    done = Sampler(pair).generate(prompt, params)
    for score, completion in zip(Sampler(pair).score([prompt], [done], 0.0), done, strict=True):
        assert completion.logprobs is not None
        assert score.logprobs[0] == pytest.approx(sum(t.contrast for t in completion.logprobs), abs=1e-3)


def test_an_id_that_no_model_knows_cannot_be_scored() -> None:
    with pytest.raises(PromptError, match=r"id 306 .* \(the 305 ids that a model and its tokenizer know\)"):
        Sampler(wider_aligned(WIDE)).score([decoding.prompt(1, 5, 5)], [[5, 306]], 0.0)
