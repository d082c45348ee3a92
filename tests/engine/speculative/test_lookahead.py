"""How many tokens are drafted, and when a drafter pauses: with scripted drafters, and costs that are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from eddecode import ModelPair, Sampler, SamplingParams
from eddecode.engine import engine as engine_module
from eddecode.engine.sequence import SequenceState
from eddecode.engine.speculative import drafters as drafters_module
from eddecode.engine.speculative.drafters import (
    BaseDrafter,
    DraftTokens,
    NgramDrafter,
    confidence_levels,
    verification_cost,
)
from eddecode.engine.speculative.speculator import AdaptiveSpeculator
from eddecode.engine.speculative.stats import (
    MEMORY,
    PAUSE,
    AcceptanceRate,
    DrafterStats,
    SpeculationStats,
)
from eddecode.execution.factory import separate_pair_runner
from eddecode.execution.runner import PairRunner
from eddecode.prompts.types import RenderedPrompt
from helpers import decoding, tiny

PROMPT = RenderedPrompt((1, 2, 3, 4, 5), (1, 2, 3, 4, 5))


class Costs:
    """Counts what is computed: a pass over one token per sequence is 1, each further token 0.05, sampling .03."""

    total = 0.0


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Costs:
    counted = Costs()
    forward = PairRunner.forward_model

    def counting_forward(self: PairRunner, model: int, tokens: torch.Tensor, lengths: Any) -> torch.Tensor:
        counted.total += 1 + 0.05 * (tokens.shape[1] - 1)
        return forward(self, model, tokens, lengths)

    monkeypatch.setattr(PairRunner, "forward_model", counting_forward)
    for module in (engine_module, drafters_module):

        def counting_sample(*args: Any, sample: Any = module.sample) -> Any:
            counted.total += 0.03
            return sample(*args)

        monkeypatch.setattr(module, "sample", counting_sample)
    return counted


def pair(amount: float) -> ModelPair:
    """A base, and an aligned model that differs from it by this share of its weights."""
    base = tiny.tiny_model("llama")
    return ModelPair.from_models(base, tiny.tiny_aligned(base, amount=amount))


def gains(costs: Costs, models: ModelPair, rows: int, **changes: Any) -> tuple[list[float], SpeculationStats]:
    """Cost without drafts over cost with the base's drafts, of three calls one after the other."""
    plain, speculative = Sampler(models), Sampler(models, speculation="base")
    found = []
    for seed in range(3):
        params = SamplingParams(max_new_tokens=100, ignore_eos=True, n=rows, seed=seed, **changes)
        totals, tokens = [costs.total], []
        for sampler in (plain, speculative):
            tokens.append(decoding.tokens(sampler.generate(PROMPT, params)))
            totals.append(costs.total)
        assert tokens[0] == tokens[1]
        found.append((totals[1] - totals[0]) / (totals[2] - totals[1]))
    assert speculative.speculator is not None
    return found, speculative.speculator.stats


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("amount", [0.02, 0.2])
def test_it_costs_little_where_drafts_are_rejected(costs: Costs, amount: float, rows: int) -> None:
    found, _ = gains(costs, pair(amount), rows, alpha=1.0)
    assert 1 / (sum(1 / gain for gain in found) / 3) > 0.97


@pytest.mark.parametrize("rows", [1, 5])
def test_it_gains_where_drafts_are_accepted(costs: Costs, rows: int) -> None:
    """A base that is always right. k + 1 tokens cost k + 1 passes of the base and one of the other: 2× is the limit."""
    found, stats = gains(costs, pair(0.0), rows, alpha=0.4)
    assert min(found) > 1.5
    assert stats.accepted == stats.verified


class Scripted:
    """Drafts tokens that are right, except for those of confidence level 0."""

    name, is_base, token_bytes = "scripted", False, 0

    def __init__(self, truth: Sequence[int], levels: Sequence[int], cost: float) -> None:
        self.truth, self.levels, self.price = truth, levels, cost
        self.drafted: list[int] = []  # tokens per draft

    def bind(self, runner: PairRunner, vocabulary: torch.Tensor) -> Scripted:
        return self

    def cost(self, num_sequences: int) -> float:
        return self.price

    def room(self, sequences: Sequence[SequenceState]) -> int:
        return 100

    def draft(self, sequences: Sequence[SequenceState]) -> Iterator[DraftTokens]:
        self.drafted.append(0)
        start = len(sequences[0].tokens)
        for token, level in zip(self.truth[start:], self.levels[start:], strict=True):
            self.drafted[-1] += 1
            yield DraftTokens([token if level else (token + 1) % tiny.VOCAB], [level])

    def trim(self) -> None: ...


def decode_with(levels: Sequence[int], cost: float) -> tuple[Scripted, SpeculationStats]:
    """One completion with a scripted drafter whose levels are repeated."""
    params = SamplingParams(alpha=1.0, max_new_tokens=200, ignore_eos=True, seed=3)
    truth = decoding.sampler().generate(PROMPT, params)[0].token_ids
    drafter = Scripted(truth, [levels[i % len(levels)] for i in range(len(truth))], cost)
    sampler = decoding.sampler(speculation=AdaptiveSpeculator([drafter]))
    assert sampler.generate(PROMPT, params)[0].token_ids == truth
    assert sampler.speculator is not None
    return drafter, sampler.speculator.stats


def test_a_drafter_that_is_right_drafts_nearly_every_token() -> None:
    drafter, stats = decode_with([5], cost=0.2)
    assert stats.accepted == stats.verified > 0.85 * 200
    assert max(drafter.drafted) > 5


def test_a_drafter_that_is_wrong_pauses() -> None:
    """It drafts in a few steps, then pauses for 64 steps, drafts again, and pauses for twice as long."""
    drafter, stats = decode_with([0], cost=0.5)
    assert stats.accepted == 0
    assert 2 <= len(drafter.drafted) <= 12
    assert sum(drafter.drafted) <= 16


def test_a_drafter_that_costs_more_than_a_step_is_not_asked() -> None:
    drafter, _ = decode_with([5], cost=1.0)
    assert not drafter.drafted


def test_a_draft_ends_at_a_token_of_low_confidence() -> None:
    """Three right tokens, then a wrong one that the drafter is not confident in: that one is soon not verified."""
    _, stats = decode_with([7, 8, 9, 0], cost=0.3)
    assert stats.accepted > 0.6 * 200
    assert stats.verified - stats.accepted <= 8


def test_tokens_beyond_the_end_of_a_completion_are_not_drafted() -> None:
    drafter, stats = decode_with([5], cost=0.2)
    assert stats.verified <= 199
    assert sum(drafter.drafted) <= 205


def test_pauses_double_and_start_again_after_success() -> None:
    stats, pauses = DrafterStats(), []
    for _ in range(8):
        while not stats.pause:
            stats.add_step(0.0, floor=0.5)
        pauses.append(stats.pause)
        steps = 1
        while stats.is_paused():
            steps += 1
        assert steps == pauses[-1]
    assert pauses == [min(PAUSE[0] * 2**i, PAUSE[1]) for i in range(8)]
    stats.add_step(1.0, floor=0.5)
    assert stats.next_pause == PAUSE[0]


def test_an_acceptance_rate_starts_as_assumed_and_follows_the_outcomes() -> None:
    rate = AcceptanceRate(0.8)
    assert rate.value == 0.8
    rate.add(0.0)
    assert 0.5 < rate.value < 0.8  # one outcome proves little
    generator = torch.Generator().manual_seed(0)
    for share in (0.9, 0.2):
        for _ in range(500):
            rate.add(float(torch.rand((), generator=generator) < share))
        deviation = (
            share * (1 - share) / (2 * MEMORY - 1)
        ) ** 0.5  # of an exponential average over MEMORY outcomes
        assert abs(rate.value - share) < 4 * deviation


def test_tokens_of_an_unknown_kind_are_as_good_as_all() -> None:
    stats = DrafterStats(overall=AcceptanceRate(0.6))
    assert stats.rate((0.5, 1.0, 3)).value == 0.6


def test_costs_are_shares_of_a_plain_step() -> None:
    """Of a pair of equal models a base pass is half a step; more sequences make verification dearer."""
    runner = separate_pair_runner(decoding.pair())
    vocabulary = decoding.pair().vocabulary
    base = BaseDrafter().bind(runner, vocabulary)
    assert 0.5 < base.cost(1) < 0.6 < base.cost(8) < 1 < base.cost(64)
    ngram = NgramDrafter().bind(runner, vocabulary)
    assert 0 < ngram.cost(1) < 0.1 < ngram.cost(8) < 1 < ngram.cost(64)
    assert verification_cost(torch.device("cuda"), 32) < verification_cost(torch.device("cpu"), 32)


def test_confidence_levels_are_margins() -> None:
    logits = torch.tensor([[0.0, 0.05, -9.0], [4.0, 0.0, 1.2], [-float("inf"), 3.0, -float("inf")]])
    assert confidence_levels(logits) == [0, 6, 9]
