"""Drafts in the captured step of a pair: the tokens are those of plain decoding, and there are fewer steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eddecode.engine.speculative.drafters import BaseDrafter, NgramDrafter, NgramIndex
from eddecode.engine.speculative.speculator import AdaptiveSpeculator
from eddecode.execution import cuda_graph
from eddecode.execution.drafted_step import DraftedStep, continued
from eddecode.execution.factory import runner_for, separate_pair_runner
from eddecode.execution.lora_runner import LoraPairRunner
from eddecode.execution.pair_loop import PairLoop
from eddecode.models.pair import ModelPair
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams
from helpers import decoding, tiny
from helpers.graphs import adapted, captured_sampler
from helpers.tape import Tape

FEW = 24  # ids, so that texts repeat themselves
WAYS = [("llama", "base", 3), ("gemma2", "base", 1), ("gemma2", "ngram", 3)]


@pytest.fixture(autouse=True)
def larger_steps(monkeypatch: pytest.MonkeyPatch, on_a_tape: None) -> None:
    """Fewer captures; texts outgrow these buffers, too."""
    monkeypatch.setattr(cuda_graph, "MIN_CAPACITY", 32)
    monkeypatch.setattr(cuda_graph, "MIN_BUFFER_POSITIONS", 32)


def drafting(source: str, length: int | None) -> AdaptiveSpeculator:
    drafter = BaseDrafter() if source == "base" else NgramDrafter()
    return AdaptiveSpeculator([drafter], num_draft_tokens=length)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions of a row each launched step samples."""
    found: list[int] = []
    launch = PairLoop.launch

    def counting(self: PairLoop) -> Any:
        assert self._step is not None
        assert isinstance(self._step, DraftedStep) == (self._step.width > 1)
        found.append(self._step.width)
        return launch(self)

    monkeypatch.setattr(PairLoop, "launch", counting)
    return found


def mixed(pair: ModelPair, count: int = 6) -> tuple[list[RenderedPrompt], list[SamplingParams]]:
    """Greedy and sampled, every filter, every sign of α; with ends at any place of a draft."""
    vocab = len(pair.vocabulary)
    prompts = [decoding.prompt(i, 1 + (5 * i) % 19, 1 + (11 * i + 6) % 17, vocab) for i in range(count)]
    kinds = [
        SamplingParams(alpha=0.3, temperature=0.0),
        SamplingParams(alpha=1.0, temperature=0.8, top_p=0.9),
        SamplingParams(alpha=-1.0, top_k=5, stop_token_ids=(7, 11)),
        SamplingParams(alpha=0.2, min_p=0.05, plausibility=0.01),
        SamplingParams(alpha=0.0, min_new_tokens=4, stop_token_ids=tuple(range(8, 20))),
        SamplingParams(alpha=0.1, suppress_tokens=(7, 8)),
    ]
    params = [
        kinds[i % 6].replace(seed=i, max_new_tokens=5 + 3 * (i % 4), ignore_eos=i % 3 > 0)
        for i in range(count)
    ]
    return prompts, params


def check(made: Sampler, plain: Sampler, prompts: Any, params: Any) -> None:
    found, expected = made.generate(prompts, params), plain.generate(prompts, params)
    assert decoding.tokens(found) == decoding.tokens(expected)
    assert [c.finish_reason for c in found] == [c.finish_reason for c in expected]
    assert [c.implied_reward for c in found] == pytest.approx([c.implied_reward for c in expected], abs=1e-3)


@pytest.mark.parametrize(("arch", "source", "length"), WAYS)
def test_two_models_give_the_tokens_of_plain_decoding(
    arch: str, source: str, length: int, launches: list[int]
) -> None:
    """Rows of many lengths come and go, and end in the middle of a draft; the logits are those of other passes."""
    pair = decoding.pair(arch, FEW)
    prompts, params = mixed(pair)
    speculator = drafting(source, length)
    made = captured_sampler(pair, max_slots=4, speculation=speculator)
    check(made, Sampler(pair, max_slots=4), prompts, params)
    assert set(launches) == {length + 1}
    assert 0 < speculator.stats.accepted < speculator.stats.verified  # both outcomes were met
    alone = made.generate(prompts[1], params[1])
    assert decoding.tokens(alone) == decoding.tokens(Sampler(pair).generate(prompts[1], params[1]))


def test_a_draft_may_have_ids_that_the_aligned_model_has_no_row_for(launches: list[int]) -> None:
    """It continues the prompt of the base, and that may hold them; what a row may sample does not."""
    pair = ModelPair.from_models(tiny.tiny_model("llama", FEW + 8), tiny.tiny_model("llama", FEW, seed=3))
    own = FEW + 3
    prompt = RenderedPrompt((own, 9, 10, own, own, 9, 10), (9, 10, 11))
    params = SamplingParams(alpha=0.3, max_new_tokens=12, ignore_eos=True)
    check(captured_sampler(pair, speculation=drafting("ngram", 3)), Sampler(pair), [prompt], params)
    assert set(launches) == {4}


@pytest.mark.parametrize("source", ["base", "ngram"])
def test_two_models_on_one_backbone_give_the_tokens_of_plain_decoding(
    source: str, launches: list[int]
) -> None:
    pair = adapted()
    prompts, params = mixed(pair, 4)
    speculator = drafting(source, 2)
    made = Sampler(pair, max_slots=3, speculation=speculator)
    made._runner = runner_for(pair, Tape)
    assert isinstance(made.runner, LoraPairRunner)
    plain = Sampler(pair)
    plain._runner = separate_pair_runner(pair)
    check(made, plain, prompts, params)
    assert set(launches) == {3}
    assert speculator.stats.verified > 0
    assert speculator.stats.accepted > 0 or source == "ngram"


def test_a_draft_that_is_always_right_needs_a_step_for_all_of_its_tokens(launches: list[int]) -> None:
    """And the host is one step behind: it launches one more than a completion of unknown length needs."""
    model = tiny.tiny_model("llama")
    pair = ModelPair.from_models(model, model)
    speculator = drafting("base", 3)
    made = captured_sampler(pair, speculation=speculator)
    prompts = [RenderedPrompt(ids, ids) for ids in (decoding.ids(i, 5) for i in range(2))]
    params = SamplingParams(alpha=0.7, max_new_tokens=17, ignore_eos=True, seed=4)
    check(made, Sampler(pair), prompts, params)
    assert len(launches) <= 7  # for 16 tokens after the prompt's own
    assert speculator.stats.accepted == speculator.stats.verified > 0


def test_drafts_stay_within_the_context_window() -> None:
    """A prompt and completion that just fit: a position beyond is none that GPT-2 has."""
    pair = decoding.pair("gpt2")
    prompts = [RenderedPrompt(decoding.ids(1, 236), decoding.ids(2, 200)), decoding.prompt(4, 5, 9)]
    params = [SamplingParams(alpha=0.1, temperature=0, max_new_tokens=n, ignore_eos=True) for n in (20, 22)]
    check(captured_sampler(pair, speculation=drafting("base", 4)), Sampler(pair), prompts, params)


def test_what_followed_the_last_two_tokens_is_what_the_index_of_the_host_finds() -> None:
    texts = [decoding.ids(seed, 4 + 7 * seed, vocab=4) for seed in range(6)]
    rows = torch.full((6, 50), 3)
    for row, ids in enumerate(texts):
        rows[row, : len(ids)] = torch.tensor(ids)
    found = continued(rows, torch.tensor([len(ids) - 1 for ids in texts]), 5).tolist()
    matches = []
    for ids, drafted in zip(texts, found, strict=True):
        index = NgramIndex(ids)
        start, length = index.find()
        matches.append(length)
        assert drafted == [index.token(start, i) for i in range(5)]
    assert max(matches) > 2
    assert min(matches) == 0


def test_drafts_that_do_not_pay_are_given_up_between_two_steps(
    monkeypatch: pytest.MonkeyPatch, launches: list[int]
) -> None:
    """By acceptance alone; the tokens go on as before."""
    monkeypatch.setattr("eddecode.engine.pipeline.PLAN_STEPS", 4)
    monkeypatch.setattr(NgramDrafter, "cost", lambda self, count: 0.4)
    pair = decoding.pair("llama")
    made = captured_sampler(pair, speculation=drafting("ngram", None))
    params = SamplingParams(alpha=1.5, max_new_tokens=28, ignore_eos=True, seed=2)
    check(made, Sampler(pair), [decoding.prompt(3, 4, 6)], params)
    assert max(launches) > 1  # assumed to be right at first
    assert launches[-8:] == [1] * 8


def test_a_step_whose_drafts_cannot_be_captured_is_told_and_leaves_plain_steps_as_they_are(
    launches: list[int],
) -> None:
    pair = decoding.pair("llama")
    prompts, params = decoding.mixed_prompts(3), decoding.GREEDY.replace(alpha=0.7)
    made = captured_sampler(pair, speculation=drafting("base", 2))

    class Single(Tape):
        def __init__(self, step: Any) -> None:
            super().__init__(step)
            if self.logits.dtype == torch.float64 and self.logits.shape[0] % 3 == 0:
                raise ValueError("several tokens are refused")

    for model_runner in made.runner.model_runners:
        model_runner.capture = Single  # type: ignore[attr-defined]
    expected = decoding.tokens(Sampler(pair).generate(prompts, params))
    with pytest.warns(
        UserWarning, match=r"with drafts cannot be captured as one \(.*several tokens are refused\)\)"
    ):
        assert decoding.tokens(made.generate(prompts, params)) == expected
    assert launches == []
    made.speculator = None
    assert decoding.tokens(made.generate(prompts, params)) == expected
    assert set(launches) == {1}


def test_a_plain_step_that_cannot_be_captured_is_not_blamed_on_drafts() -> None:
    """Rows with penalties are decoded without drafts, also where others have them."""
    pair = decoding.pair("llama")
    prompts = decoding.mixed_prompts(2)
    params = decoding.GREEDY.replace(alpha=0.7, max_new_tokens=4, repetition_penalty=1.2)
    made = captured_sampler(pair, speculation=drafting("base", 2))

    class Single(Tape):
        def __init__(self, step: Any) -> None:
            super().__init__(step)
            if self.logits.dtype == torch.float64:
                raise ValueError("all of it is refused")

    for model_runner in made.runner.model_runners:
        model_runner.capture = Single  # type: ignore[attr-defined]
    with pytest.warns(
        UserWarning,
        match=r"the step of base and aligned cannot be captured as one \(.*all of it is refused\)\)",
    ):
        found = decoding.tokens(made.generate(prompts, params))
    assert found == decoding.tokens(Sampler(pair).generate(prompts, params))
    assert len(made.runner.step_failures) == 1
    assert made.runner.draft_failures == []
