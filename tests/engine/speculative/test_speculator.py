"""Speculative decoding gives the tokens of plain decoding, with every drafter."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from scipy import stats

from eddecode import ModelPair, Sampler, SamplingParams
from eddecode.engine.draft import Draft
from eddecode.engine.speculative.drafters import BaseDrafter, NgramDrafter, NgramIndex
from eddecode.engine.speculative.factory import assistant_for
from eddecode.engine.speculative.speculator import AdaptiveSpeculator
from eddecode.engine.speculative.stats import SpeculationStats
from eddecode.execution.factory import separate_pair_runner
from eddecode.execution.lora_runner import LoraPairRunner
from eddecode.execution.uncached_runner import UncachedModelRunner
from eddecode.outputs import Completion
from eddecode.prompts.types import RenderedPrompt
from helpers import decoding, reference, tiny

FEW = 24  # ids, so that texts repeat themselves
LONG = [("base", 5), ("ngram", 4), ("twin", 6), ("stranger", 3)]
SHORT = [("base", 2), ("ngram", 2), ("twin", 2)]
# Long drafts are what an architecture's cache has to take back; the drafters' own short ones need one architecture.
WAYS = [
    *(("llama", *way) for way in (*SHORT, *LONG)),
    *((arch, *way) for arch in ("gemma2", "gpt2", "mistral") for way in LONG),
]


class Turns(AdaptiveSpeculator):
    """Drafts at two steps of three only, so that plain steps and others follow one another."""

    turn = 0

    def propose(self, sequences: Any, limit: int) -> Draft:
        self.turn += 1
        return Draft() if self.turn % 3 == 0 else super().propose(sequences, limit)


def drafting(
    sampler: Sampler, name: str, length: int, kind: type[AdaptiveSpeculator] = AdaptiveSpeculator
) -> tuple[Sampler, SpeculationStats]:
    """The sampler, verifying `length` tokens at every step, all but the first drafted; and its statistics.

    "twin" is an assistant that is the base model, "stranger" one that has nothing to do with the pair.
    """
    if name in ("twin", "stranger"):
        width = len(sampler.pair.vocabulary)
        model = sampler.pair.models[0] if name == "twin" else tiny.tiny_model("qwen2", width, seed=77)
        drafter: Any = assistant_for(sampler.pair, model)
    else:
        drafter = BaseDrafter() if name == "base" else NgramDrafter()
    sampler.speculator = kind([drafter], num_draft_tokens=length - 1)
    return sampler, sampler.speculator.stats


def mixed_params(count: int) -> list[SamplingParams]:
    """Greedy and sampled, every filter, every sign of α, short and long, side by side."""
    kinds = [
        SamplingParams(alpha=0.3, temperature=0.0),
        SamplingParams(alpha=1.0, temperature=0.8, top_p=0.9),
        SamplingParams(alpha=-1.0, top_k=5),
        SamplingParams(alpha=2.0, min_p=0.05, plausibility=0.01),
        SamplingParams(alpha=0.0, min_new_tokens=6),
        SamplingParams(alpha=0.1, n=3, suppress_tokens=(7, 8)),
    ]
    return [kinds[i % len(kinds)].replace(seed=i, max_new_tokens=5 + 3 * (i % 7)) for i in range(count)]


def mixed_completions(sampler: Sampler, count: int = 8) -> list[Completion]:
    prompts = [decoding.prompt(i, 1 + (5 * i) % 29, 1 + (11 * i + 6) % 37, FEW) for i in range(count)]
    return sampler.generate(prompts, mixed_params(count))


@cache
def without_drafts(arch: str, slots: int) -> list[Completion]:
    """One token at a time: the same for all drafters, so decoded once."""
    return mixed_completions(Sampler(decoding.pair(arch, FEW), max_slots=slots))


def check_the_same(expected: list[Completion], speculative: Sampler) -> None:
    found = mixed_completions(speculative)
    assert decoding.tokens(found) == decoding.tokens(expected)
    assert [c.finish_reason for c in found] == [c.finish_reason for c in expected]
    assert [c.implied_reward for c in found] == pytest.approx([c.implied_reward for c in expected], abs=1e-3)


@pytest.mark.parametrize(("arch", "drafter", "length"), WAYS)
def test_the_same_tokens_as_one_at_a_time(arch: str, drafter: str, length: int) -> None:
    pair = decoding.pair(arch, FEW)
    sampler, counts = drafting(Sampler(pair, max_slots=5), drafter, length)
    check_the_same(without_drafts(arch, 5), sampler)
    assert counts.verified > 0
    if drafter in ("base", "twin"):
        assert 0 < counts.accepted < counts.verified  # both outcomes were met


@pytest.mark.parametrize("drafter", ["base", "ngram", "twin", "stranger"])
def test_plain_steps_in_between_change_nothing(drafter: str) -> None:
    """The uniform of a token is that of its position, whichever way the row came there."""
    pair = decoding.pair("llama", FEW)
    sampler, counts = drafting(Sampler(pair, max_slots=4), drafter, 4, Turns)
    check_the_same(without_drafts("llama", 4), sampler)
    assert counts.verified > 0


@pytest.mark.parametrize("drafter", ["base", "ngram", "twin"])
def test_models_that_are_recomputed_for_every_token(drafter: str) -> None:
    pair = decoding.pair("gpt_neox", FEW)
    sampler, counts = drafting(Sampler(pair, max_slots=5), drafter, 3)
    sampler.runner.model_runners = [UncachedModelRunner(model) for model in pair.models]
    if drafter == "twin":
        runner = sampler.speculator.drafters[0]._runner  # type: ignore[union-attr, attr-defined]
        runner.model_runners = [UncachedModelRunner(pair.base)]
    check_the_same(without_drafts("gpt_neox", 5), sampler)
    assert counts.verified > 0


@pytest.mark.parametrize("drafter", ["base", "ngram", "stranger"])
def test_two_models_on_one_backbone(drafter: str) -> None:
    """A LoRA release: a pass over several tokens is made for each half of the rows on its own."""
    base, aligned = tiny.tiny_model(vocab=FEW), tiny.tiny_model(vocab=FEW)
    generator = torch.Generator().manual_seed(3)
    factors = {}
    for name, module in base.named_modules():
        if name.endswith(("q_proj", "down_proj")):
            rows, columns = module.weight.shape
            factors[name] = (
                torch.randn(2, columns, generator=generator) / 8,
                torch.randn(rows, 2, generator=generator),
            )
    for name, (a, b) in factors.items():
        aligned.get_submodule(name).weight.data += b @ a
    pair = ModelPair.from_models(base, aligned)
    sampler, counts = drafting(Sampler(pair, max_slots=5), drafter, 4)
    sampler._runner = LoraPairRunner(pair, factors)
    assert sampler._runner.self_check() is None
    plain = Sampler(pair, max_slots=5)
    plain._runner = separate_pair_runner(pair)
    check_the_same(mixed_completions(plain), sampler)
    assert counts.verified > 0


# Ends inside of a draft


@pytest.mark.parametrize("drafter", ["base", "twin"])
def test_stop_strings_end_a_completion_where_they_would_without(drafter: str) -> None:
    pair = decoding.spoken_pair()
    params = SamplingParams(alpha=0.2, max_new_tokens=40, stop=("e", "th"), min_new_tokens=4, n=6, seed=2)
    expected = Sampler(pair, aligned_template="chat").generate("hello there", params)
    sampler, _ = drafting(Sampler(pair, aligned_template="chat"), drafter, 4)
    found = sampler.generate("hello there", params)
    assert [(c.text, c.finish_reason, c.token_ids) for c in found] == [
        (c.text, c.finish_reason, c.token_ids) for c in expected
    ]


@pytest.mark.parametrize("end", ["eos", "stop", "length"])
def test_a_completion_ends_inside_a_draft(end: str) -> None:
    """A base that is always right, six tokens at a time, with an end at each of the places of a draft."""
    model = tiny.tiny_model("llama")
    prompt = decoding.prompt(3, 9, 9)
    prompt = RenderedPrompt(prompt.base_ids, prompt.base_ids)
    free = SamplingParams(alpha=0.5, max_new_tokens=14, ignore_eos=True, seed=5)
    tokens = Sampler(ModelPair.from_models(model, model)).generate(prompt, free)[0].token_ids
    for length in range(1, len(tokens)):
        pair = ModelPair.from_models(model, model)
        sampler, counts = drafting(Sampler(pair), "base", 6)
        params = free.replace(ignore_eos=False)
        if end == "eos":
            pair.eos_ids = (frozenset({tokens[length - 1]}),) * 2
        elif end == "stop":
            params = params.replace(stop_token_ids=(tokens[length - 1],))
        else:
            params = params.replace(max_new_tokens=length)
        first = tokens.index(tokens[length - 1]) + 1 if end != "length" else length
        found = sampler.generate(prompt, params)[0]
        assert (found.token_ids, found.finish_reason) == (tokens[:first], end)
        assert counts.accepted == counts.verified  # nothing beyond the end counts as a wrong draft


def test_a_base_that_is_the_target_is_always_right() -> None:
    model = tiny.tiny_model("llama")
    for drafter in ("base", "twin"):
        sampler, counts = drafting(Sampler(ModelPair.from_models(model, model)), drafter, 4)
        prompts = [RenderedPrompt(ids, ids) for ids in (decoding.ids(i, 5 + i) for i in range(4))]
        sampler.generate(prompts, SamplingParams(alpha=1.5, max_new_tokens=20, ignore_eos=True))
        assert counts.accepted == counts.verified > 30


@pytest.mark.parametrize("drafter", ["base", "ngram", "twin"])
def test_drafts_stay_within_the_context_window(drafter: str) -> None:
    """A prompt and completion that just fit: a draft beyond would ask for a position that GPT-2 does not have."""
    pair = decoding.pair("gpt2")
    prompts = [RenderedPrompt(decoding.ids(1, 236), decoding.ids(2, 200)), decoding.prompt(4, 5, 9)]
    params = SamplingParams(alpha=0.1, temperature=0, max_new_tokens=20, ignore_eos=True)
    sampler, _ = drafting(Sampler(pair), drafter, 6)
    expected = Sampler(pair).generate(prompts, params)
    assert decoding.tokens(sampler.generate(prompts, params)) == decoding.tokens(expected)


def test_a_row_with_little_left_does_not_hold_back_the_others() -> None:
    model = tiny.tiny_model("llama")
    sampler, counts = drafting(Sampler(ModelPair.from_models(model, model)), "base", 5)
    prompts = [RenderedPrompt(ids, ids) for ids in (decoding.ids(i, 6) for i in range(2))]
    params = [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (2, 21)]
    sampler.generate(prompts, params)
    assert counts.verified == 16  # four steps of five tokens, of which the last one is not drafted


# The distribution


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(alpha=0.5),
        SamplingParams(alpha=2.0, temperature=0.7),
        SamplingParams(alpha=0.3, top_k=4),
        SamplingParams(alpha=1.0, top_p=0.8),
        SamplingParams(alpha=-0.5, temperature=1.3, top_k=5, top_p=0.9),
    ],
    ids=["plain", "cold", "top-k", "top-p", "all"],
)
def test_the_distribution_is_the_exact_one(params: SamplingParams) -> None:
    """All completions of three tokens over seven ids, enumerated by the naive decoder; chi-square at 1e-4."""
    vocab, length, count = 7, 3, 1000
    base, aligned = tiny.tiny_pair_models("llama", vocab)
    prompt = RenderedPrompt([1, 2], [3])
    sampler, counts = drafting(Sampler(ModelPair.from_models(base, aligned), max_slots=250), "base", 3)
    params = params.replace(max_new_tokens=length, ignore_eos=True, n=count, seed=11)
    seen = Counter(tuple(c.token_ids) for c in sampler.generate(prompt, params))
    expected = exact(base, aligned, prompt, params, length)
    assert set(seen) <= set(expected)
    kept = {ids: count * p for ids, p in expected.items() if count * p >= 5}
    observed = [seen[ids] for ids in kept]
    rest = count - sum(observed), count - sum(kept.values())
    if rest[1] > 1e-6:
        kept[()] = rest[1]
        observed.append(rest[0])
    assert len(observed) > 5
    assert stats.chisquare(observed, list(kept.values())).pvalue > 1e-4
    assert 0 < counts.accepted < counts.verified


def exact(
    base: Any, aligned: Any, prompt: RenderedPrompt, params: SamplingParams, length: int
) -> dict[tuple[int, ...], float]:
    """The probability of every completion, from plain forward passes."""
    found = {(): 1.0}
    for _ in range(length):
        longer: dict[tuple[int, ...], float] = {}
        for ids, mass in found.items():
            logits = [
                reference.next_logits(model, (*text, *ids))
                for model, text in zip((base, aligned), prompt.ids, strict=True)
            ]
            z = reference.contrasted(logits, (1 + params.alpha, -params.alpha))
            p = reference.filtered(z, params.temperature, params.top_k, params.top_p)
            longer.update({(*ids, i): mass * float(p[i]) for i in range(len(p)) if p[i] > 0})
        found = longer
    return found


# Texts that repeat themselves


def test_a_text_that_repeats_is_continued_as_before() -> None:
    text = NgramIndex((1, 2, 3, 4))
    assert text.find() == (0, 0)
    text.update([9, 2, 3])
    assert text.find() == (3, 2)  # behind the first "2, 3"
    assert [text.token(3, i) for i in range(6)] == [4, 9, 2, 3, 4, 9]
    text.update([9, 2, 3, 4, 9, 2, 3])
    assert text.find() == (7, 6)  # the latest place, and all that was the same before it
    text.update([9, 2, 3, 4, 9, 2, 3, 8])
    assert text.find() == (0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_is_the_latest_place_of_the_last_two(seed: int) -> None:
    ids = decoding.ids(seed, 60, vocab=4)
    text = NgramIndex(ids[:3])
    for end in range(3, 60):
        text.update(ids[3:end])
        places = [at for at in range(2, end) if ids[at - 2 : at] == ids[end - 2 : end]]
        start, length = text.find()
        assert start == max(places, default=0)
        length_by_hand = 0
        while (
            length_by_hand < min(start, 12)
            and ids[start - 1 - length_by_hand] == ids[end - 1 - length_by_hand]
        ):
            length_by_hand += 1
        assert length == length_by_hand
