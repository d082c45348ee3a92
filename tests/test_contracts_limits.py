"""The contracts of the engine: a safe vocabulary, and nothing silent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eddecode.errors import ContextError, EngineError
from eddecode.execution import runner as decoder_module
from eddecode.models.pair import ModelPair
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams
from helpers import reference, tiny
from helpers.decoding import GREEDY, mixed_prompts, pair, prompt, sampler, tokens

# Safe vocabulary -------------------------------------------------------------------------------------------------


@pytest.fixture
def phi() -> tuple[Any, Any]:
    """A pair whose heads have a bias: any logit can be set."""
    return tiny.tiny_pair_models("phi")


def test_a_padded_id_that_the_aligned_model_abhors_is_never_sampled(phi: tuple[Any, Any]) -> None:
    base, aligned = phi
    aligned.lm_head.bias.data[290] = -1e4
    params = SamplingParams(alpha=2.0, max_new_tokens=6, n=8, ignore_eos=True)
    trapped = Sampler(ModelPair.from_models(base, aligned)).generate(prompt(0, 3, 4, 280), params)
    assert all(token == 290 for row in tokens(trapped) for token in row)  # the trap is real
    known = tiny.tiny_tokenizer(280)
    safe = Sampler(ModelPair.from_models(base, aligned, known, known)).generate(prompt(0, 3, 4, 280), params)
    assert max(token for row in tokens(safe) for token in row) < 280


def test_minus_infinity_of_a_model_that_has_a_say_is_never_sampled(phi: tuple[Any, Any]) -> None:
    base, aligned = phi
    banned = list(range(10, 200))
    aligned.lm_head.bias.data[banned] = -torch.inf
    made = Sampler(ModelPair.from_models(base, aligned))
    params = SamplingParams(max_new_tokens=8, n=8, ignore_eos=True)
    for alpha in (2.0, -0.5, -1.0):
        done = made.generate(prompt(0, 3, 4), params.replace(alpha=alpha))
        assert not {token for row in tokens(done) for token in row} & set(banned), alpha
    at_zero = made.generate(prompt(0, 3, 4), params)
    assert {token for row in tokens(at_zero) for token in row} & set(banned)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_a_model_without_a_say_cannot_spoil_the_other(phi: tuple[Any, Any], value: float) -> None:
    base, aligned = phi
    params = GREEDY.replace(n=1)
    expected = tokens(Sampler(ModelPair.from_models(base, aligned)).generate(prompt(0, 3, 4), params))
    unsaid = next(i for i in range(300) if i not in expected[0])
    aligned.lm_head.bias.data[unsaid] = value
    assert tokens(Sampler(ModelPair.from_models(base, aligned)).generate(prompt(0, 3, 4), params)) == expected


# Nothing silent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["base", "aligned"])
@pytest.mark.parametrize("when", ["prompt", "later"])
def test_nan_names_the_model_and_the_request(side: str, when: str) -> None:
    """One row's NaN, from its prompt or from a token that it sampled itself."""
    base, aligned = tiny.tiny_pair_models()
    prompts = [prompt(i, 4, 5, 290) for i in range(4)]
    params = [GREEDY.replace(alpha=0.5, n=2)] * 4
    row = reference.generate((base, aligned), prompts[2].ids, 0.5, 10).ids
    others = [
        token
        for p in (*prompts[:2], prompts[3])
        for token in reference.generate((base, aligned), p.ids, 0.5, 10).ids
    ]
    asked = {token for p in prompts for ids in p.ids for token in ids}
    later = [token for token in row[:-1] if token not in others and token not in asked]
    assert later
    bad = 299 if when == "prompt" else later[0]
    if when == "prompt":
        prompts[2] = RenderedPrompt([3, 299], [299, 4])
    model = base if side == "base" else aligned
    model.get_input_embeddings().weight.data[bad] = torch.nan
    read = 0 if when == "prompt" else row.index(bad) + 1
    made = Sampler(ModelPair.from_models(base, aligned))
    message = rf"prompt 2, sample [01], after {read} tokens: the logits of the {side} model contain NaN"
    with pytest.raises(EngineError, match=message):
        made.generate(prompts, params)


def test_nothing_left_to_sample_names_the_request() -> None:
    params = [GREEDY, GREEDY.replace(suppress_tokens=tuple(range(tiny.VOCAB)))]
    with pytest.raises(EngineError, match=r"prompt 1, sample 0, after 0 tokens: no token is left to sample"):
        sampler().generate(mixed_prompts(2), params)


def test_a_request_that_is_too_long_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sampler()
    made.runner  # noqa: B018

    def never(*args: Any) -> Any:
        raise AssertionError("a model ran")

    monkeypatch.setattr(decoder_module.CachedModelRunner, "_forward", never)
    message = (
        r"prompt 1, sample 0: the aligned model reads at most 256 tokens, but the prompt has 250 and "
        r"max_new_tokens=10 asks for 260 in all; shorten the prompt or lower max_new_tokens to 6"
    )
    with pytest.raises(ContextError, match=message):
        made.generate([prompt(0, 3, 3), prompt(1, 3, 250)], GREEDY)
    with pytest.raises(ContextError, match=r"the base model reads at most 256 tokens"):
        made.as_completed([prompt(1, 250, 3)], GREEDY)


def test_a_text_may_fill_the_whole_window() -> None:
    p = prompt(1, 246, 3)
    done = sampler().generate(p, GREEDY.replace(alpha=0.5))
    assert tokens(done) == [reference.generate(pair().models, p.ids, 0.5, 10).ids]
