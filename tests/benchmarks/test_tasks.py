"""The benchmarks: the alternatives do the same work correctly, and the figures follow from the measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import memory
from benchmarks.alternatives import BaseAlone, ProcessorPair
from benchmarks.compiled import CompiledBaseAlone, StaticBaseAlone, StaticProcessorPair
from benchmarks.pairs import CHANGE, RANK, BenchPair, build
from benchmarks.registry import ALTERNATIVES, DEFAULTS, OURS, SAMPLERS, Eddecode, do
from benchmarks.roofline import bytes_to_hold, bytes_to_read, position_bytes
from benchmarks.tasks import TASKS, NotAvailable, Work
from helpers.benching import SHAPE, work_on

pytestmark = pytest.mark.usefixtures("cheap_collection")
PAIR_ALTERNATIVES = [OURS, "authors", "processor"]


@pytest.fixture(scope="module", params=["full", "lora"])
def pair(request: pytest.FixtureRequest) -> BenchPair:
    return build(SHAPE, "float32", request.param)


@torch.inference_mode()
def naive_greedy(pair: BenchPair, work: Work) -> list[list[int]]:
    """Both models over the whole text for every token, one row at a time: no cache, no padding."""
    rows = []
    for alpha in work.alphas:
        for prompt in work.prompts:
            tokens: list[int] = []
            for _ in range(work.new_tokens):
                base, aligned = (
                    model(torch.tensor([[*ids, *tokens]])).logits[0, -1].double()
                    for model, ids in zip((pair.base, pair.aligned), prompt.ids, strict=True)
                )
                tokens.append(int(((1 + alpha) * base - alpha * aligned).argmax()))
            rows.append(tokens)
    return rows


@torch.inference_mode()
def naive_scores(pair: BenchPair, work: Work) -> list[list[float]]:
    """One completion at a time, in float64."""
    scores = []
    for alpha in work.alphas:
        row = []
        for prompt, completion in zip(work.prompts, work.completions, strict=True):
            base, aligned = (
                model(torch.tensor([[*ids, *completion]])).logits[0, len(ids) - 1 : -1].double()
                for model, ids in zip((pair.base, pair.aligned), prompt.ids, strict=True)
            )
            logprobs = ((1 + alpha) * base - alpha * aligned).log_softmax(-1)
            row.append(float(sum(logprobs[i, token] for i, token in enumerate(completion))))
        scores.append(row)
    return scores


# The alternatives -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recomputed(pair: BenchPair) -> tuple[Work, list[list[int]]]:
    """Greedy work, and its tokens by the naive recomputation."""
    work = work_on(pair, "T3", alphas=(0.0, 0.7, 2.0), temperature=0.0)
    return work, naive_greedy(pair, work)


@pytest.mark.parametrize("name", PAIR_ALTERNATIVES)
def test_greedy_tokens_are_those_of_a_naive_recomputation(
    pair: BenchPair, recomputed: tuple[Work, list[list[int]]], name: str
) -> None:
    work, expected = recomputed
    assert len({len(prompt.base_ids) for prompt in work.prompts}) > 1  # padding is exercised
    assert do(ALTERNATIVES[name].make(pair), work) == expected


def test_the_floor_is_the_base_alone(pair: BenchPair) -> None:
    work = work_on(pair, "T2", alphas=(0.5, 1.0), temperature=0.0)
    expected = naive_greedy(pair, replace(work, alphas=(0.0, 0.0)))
    assert do(ALTERNATIVES["floor"].make(pair), work) == expected


def test_the_compiled_floor_gives_the_tokens_of_the_floor(pair: BenchPair) -> None:
    """Without the compiler: what is compiled is the step, and the rest is ours."""
    work = work_on(pair, "T2", temperature=0.0)
    alternative = CompiledBaseAlone(pair, compile=lambda step: step)
    assert do(alternative, work) == do(ALTERNATIVES["floor"].make(pair), work)
    with pytest.raises(NotAvailable, match="a sweep would be compiled for every number of rows"):
        do(alternative, replace(work, alphas=(0.1, 0.2)))


def test_static_caches_give_the_tokens_of_growing_ones() -> None:
    """Twice, with another number of tokens in between: the caches are emptied and kept by shape."""
    pair = build(SHAPE, "float32")
    static = StaticProcessorPair(pair)
    for tokens in (8, 5, 8):
        work = work_on(pair, "T2", temperature=0.0, alphas=(0.3, 1.0), new_tokens=tokens)
        assert static.complete(work) == ProcessorPair(pair).complete(work)
    assert len(static.caches) == 2
    floor = work_on(pair, "T2", temperature=0.0, alphas=(0.3,))
    assert StaticBaseAlone(pair).complete(floor) == BaseAlone(pair).complete(floor)


@pytest.mark.parametrize("name", PAIR_ALTERNATIVES)
def test_scores_are_those_of_a_naive_recomputation(pair: BenchPair, name: str) -> None:
    work = work_on(pair, "T4", alphas=(0.25, 2.0))
    try:
        found = do(ALTERNATIVES[name].make(pair), work)
    except NotAvailable as why:
        pytest.skip(str(why))
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64),
        torch.tensor(naive_scores(pair, work)).double(),
        rtol=1e-4,
        atol=1e-3,
    )


@pytest.mark.parametrize("name", DEFAULTS)
def test_sampling_makes_all_tokens_and_depends_on_the_seed(pair: BenchPair, name: str) -> None:
    work = work_on(pair, "T2")
    alternative = ALTERNATIVES[name].make(pair)
    first = do(alternative, work)
    assert do(alternative, work) == first
    assert do(alternative, replace(work, seed=1)) != first


def test_work_that_was_not_all_done_is_refused(pair: BenchPair) -> None:
    class Lazy(Eddecode):
        def complete(self, work: Work) -> list[list[int]]:
            return super().complete(work.shorter(work.new_tokens - 1))

    with pytest.raises(AssertionError, match=r"expected 8 completions of 8 tokens, got 8 of lengths \[7\]"):
        do(Lazy(pair), work_on(pair, "T2"))


def test_a_sampler_can_be_plugged_in_per_variant(pair: BenchPair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = SAMPLERS[pair.variant]

    def shared(given: BenchPair) -> Any:
        seen.append(given.factors.keys())
        return plain(given)

    monkeypatch.setitem(SAMPLERS, pair.variant, shared)
    ALTERNATIVES[OURS].make(pair)
    assert seen == [pair.factors.keys()]


# The pairs ----------------------------------------------------------------------------------------------------------


def test_a_low_rank_pair_is_base_plus_factors() -> None:
    pair = build(SHAPE, "float32", "lora")
    moved = dict(pair.aligned.named_modules())
    for name, module in pair.base.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            a, b = pair.factors[name]
            assert a.shape[0] == b.shape[1] == RANK
            torch.testing.assert_close(moved[name].weight, module.weight + b @ a)
            assert (b @ a).norm() / module.weight.norm() == pytest.approx(CHANGE, rel=1e-3)
        elif hasattr(module, "weight"):
            assert torch.equal(moved[name].weight, module.weight)


def test_a_pair_is_the_same_each_time_and_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    first, second = build(SHAPE, "bf16"), build(SHAPE, "bf16")
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.aligned.parameters(), second.aligned.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.base.lm_head.weight, first.aligned.lm_head.weight)
    assert build(SHAPE, "bf16", base_only=True).aligned is None


def test_prompts_differ_between_rows_and_models(pair: BenchPair) -> None:
    prompts = pair.prompts(8)
    assert len({prompt.base_ids for prompt in prompts}) == 8
    assert all(prompt.base_ids != prompt.aligned_ids for prompt in prompts)


@pytest.mark.parametrize(
    ("task", "rows", "tokens"), [("T1", 1, 128), ("T2", 8, 512), ("T3", 64, 4096), ("T4", 512, 32768)]
)
def test_tasks_have_the_size_that_they_are_named_for(
    pair: BenchPair, task: str, rows: int, tokens: int
) -> None:
    work = TASKS[task].work(pair)
    assert (work.rows, work.tokens) == (rows, tokens)


# The roofline -------------------------------------------------------------------------------------------------------


def test_bytes_to_read_are_those_counted_step_by_step(pair: BenchPair) -> None:
    work = work_on(pair, "T3")
    linear = [module for module in pair.base.modules() if isinstance(module, torch.nn.Linear)]
    norms = [p for name, p in pair.base.named_parameters() if "norm" in name]
    weights = sum(module.weight.nbytes for module in linear) + sum(p.nbytes for p in norms)
    factors = sum(a.nbytes + b.nbytes for a, b in pair.factors.values())
    once = weights + factors if pair.factors else 2 * weights
    a_position = 2 * SHAPE.layers * SHAPE.hidden * 4  # keys and values, float32
    total = 0
    for step in range(work.new_tokens):
        total += once
        if step > 0:
            lengths = [len(ids) + step for prompt in work.prompts for ids in prompt.ids]
            total += len(work.alphas) * a_position * sum(lengths)
    assert position_bytes(pair.base) == a_position
    assert bytes_to_read(pair, work, 2) == total


@torch.inference_mode()
def test_bytes_to_hold_are_weights_and_the_keys_and_values_of_every_row() -> None:
    pair = build(SHAPE, "float32")
    work = work_on(pair, "T2", alphas=(0.5, 1.0))
    held = sum(p.nbytes for model in (pair.base, pair.aligned) for p in model.parameters())
    for prompt in work.prompts:
        for model, ids in zip((pair.base, pair.aligned), prompt.ids, strict=True):
            read = [*ids, *[0] * (work.new_tokens - 1)]  # the last token is never read
            cache = model(torch.tensor([read]), use_cache=True).past_key_values
            held += len(work.alphas) * sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert bytes_to_hold(pair, work, 2) == held


def test_rows_that_wait_hold_nothing(pair: BenchPair) -> None:
    work = work_on(pair, "T2", alphas=(0.5, 1.0))
    held = bytes_to_hold(pair, replace(work, alphas=(), prompts=()), 2)  # the weights
    for slots in (1, 3, 16, 99):
        positions = [
            sorted((len(p.ids[side]) + work.new_tokens - 1 for p in work.prompts * 2), reverse=True)[:slots]
            for side in (0, 1)
        ]
        expected = position_bytes(pair.base) * sum(map(sum, positions))
        assert bytes_to_hold(pair, work, 2, slots) - held == expected


def test_a_probe_can_ask_for_a_larger_sweep(pair: BenchPair) -> None:
    probe = memory.Probe(OURS, "T3", "10M", "float32", "full", "cpu", 1)
    assert probe.work(pair) == TASKS["T3"].work(pair)
    work = replace(probe, alphas=16, prompts=4, prompt_tokens=11, new_tokens=5).work(pair)
    assert (len(set(work.alphas)), len(set(work.prompts)), work.new_tokens) == (16, 4, 5)
    assert {len(ids) for prompt in work.prompts for ids in prompt.ids} == {11}
