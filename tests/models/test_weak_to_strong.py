"""Weak-to-strong against sums of three models' logits, and against what it is where the weak pair is the strong one."""

from __future__ import annotations

import pytest

from eddecode.errors import PairError
from eddecode.models.pair import ModelPair
from eddecode.models.weak_to_strong import WeakToStrong
from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams
from helpers import tiny
from helpers.decoding import mixed_prompts, prompt
from helpers.reference import contrasted, log_softmax, next_logits

GREEDY = SamplingParams(alpha=-1.0, temperature=0.0, max_new_tokens=8, ignore_eos=True, logprobs=True)


def _pairs() -> tuple[ModelPair, ModelPair]:
    strong = ModelPair.from_models(*tiny.tiny_pair_models("llama"))
    weak = ModelPair.from_models(*tiny.tiny_pair_models("llama", seed=5))
    return strong, weak


def test_tokens_and_log_probabilities_are_those_of_naive_sums() -> None:
    strong, weak = _pairs()
    group = WeakToStrong.from_models(strong, weak, strength=0.8)
    for given in (prompt(1, 5, 7), prompt(2, 9, 3)):
        (found,) = Sampler(group).generate(given, GREEDY)
        total = 0.0
        for i, token in enumerate(found.token_ids):
            begun = found.token_ids[:i]
            texts = ([*given.base_ids, *begun], [*given.aligned_ids, *begun])
            logits = [
                next_logits(strong.aligned, texts[1]),
                next_logits(weak.base, texts[0]),
                next_logits(weak.aligned, texts[1]),
            ]
            z = contrasted(logits, (1.0, 0.8, -0.8))
            assert token == int(z.argmax())
            total += float(log_softmax(next_logits(strong.base, texts[0]))[token])
        assert found.base_logprob == pytest.approx(total, abs=1e-3)


def test_a_weak_pair_that_is_the_strong_one_gives_the_base_at_strength_1() -> None:
    strong, _ = _pairs()
    group = WeakToStrong.from_models(strong, strong, strength=1.0)
    prompts = mixed_prompts(4)
    found = Sampler(group).generate(prompts, GREEDY)
    base = Sampler(strong).generate(prompts, GREEDY.replace(alpha=0.0))
    assert [c.token_ids for c in found] == [c.token_ids for c in base]


def test_a_pair_across_that_is_of_other_models_is_refused() -> None:
    strong, weak = _pairs()
    with pytest.raises(PairError, match="two aligned models"):
        WeakToStrong(strong, weak, weak, 1.0)
