"""Captured steps in the pair runner and the sampler; with CUDA graphs where there is a GPU."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from eddecode.engine.pipeline import Pipeline
from eddecode.errors import EngineError, ParamsError
from eddecode.execution.capture import CudaGraph
from eddecode.execution.cuda_graph import GraphModelRunner
from eddecode.execution.factory import runner_for, separate_pair_runner
from eddecode.execution.lora_runner import LoraPairRunner
from eddecode.execution.pair_loop import Flight, PairLoop
from eddecode.execution.runner import CachedModelRunner, PairRunner
from eddecode.models.pair import ModelPair
from eddecode.sampler import Sampler
from eddecode.sampling.access import Access
from eddecode.sampling.params import SamplingParams
from eddecode.utils.device import to_device
from helpers import decoding, reference, tiny
from helpers.graphs import EVERY, adapted, captured_sampler
from helpers.tape import Tape

pytestmark = pytest.mark.usefixtures("on_a_tape")


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("speculation", ["off", "base"])
def test_completions_are_the_same(arch: str, speculation: Any) -> None:
    """Rows of many lengths and α's come and go; greedy tokens are those of two plain models."""
    pair = decoding.pair(arch)
    prompts = decoding.mixed_prompts(8)
    alphas = [(-1.0, 0.0, 0.7, 2.0)[i % 4] for i in range(8)]
    params = [decoding.GREEDY.replace(alpha=alpha, max_new_tokens=4 + i) for i, alpha in enumerate(alphas)]
    made = captured_sampler(pair, max_slots=3, speculation=speculation)
    found = decoding.tokens(made.generate(prompts, params))
    assert found == decoding.tokens(Sampler(pair, max_slots=3).generate(prompts, params))
    for i in (0, 3, 7):
        expected = reference.generate(pair.models, prompts[i].ids, alphas[i], 4 + i).ids
        assert found[i] == expected
    assert Tape.played > 2 * 10


def test_sampled_completions_are_the_same_and_later_calls_reuse_the_graphs() -> None:
    pair = decoding.pair("llama")
    params = decoding.GREEDY.replace(alpha=0.6, temperature=1.0, top_p=0.9, n=3)
    prompts = decoding.mixed_prompts(4)
    made = captured_sampler(pair, max_slots=8)
    gc.collect()
    found = decoding.tokens(made.generate(prompts, params))
    gc.collect()
    assert decoding.tokens(made.generate(prompts, params)) == found
    gc.collect()
    recorded = Tape.recorded  # the first call outgrew its buffers; from the second on they have their size
    assert decoding.tokens(made.generate(prompts, params)) == found
    assert Tape.recorded == recorded
    assert found == decoding.tokens(Sampler(pair).generate(prompts, params))


@pytest.mark.parametrize("speculation", ["off", "base"])
def test_an_adapter_and_its_base_are_captured_in_one_step(
    speculation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = adapted()
    prompts, params = decoding.mixed_prompts(6), decoding.GREEDY.replace(alpha=0.8)
    made = Sampler(pair, max_slots=3, speculation=speculation)
    made._runner = runner_for(pair, Tape)
    assert isinstance(made.runner, LoraPairRunner)
    assert isinstance(made.runner._backbone, GraphModelRunner)
    launched, launch = [], PairLoop.launch
    monkeypatch.setattr(PairLoop, "launch", lambda self: launched.append(self) or launch(self))
    played = Tape.played
    found = decoding.tokens(made.generate(prompts, params))
    assert Tape.played - played == len(launched) > 0  # every step is that of the pair
    plain = Sampler(pair)
    plain._runner = separate_pair_runner(pair)
    assert found == decoding.tokens(plain.generate(prompts, params))


def test_an_adapter_that_cannot_be_captured_still_shares_its_backbone() -> None:
    class Stuck(Tape):
        def __call__(self) -> torch.Tensor:
            return self.logits

    with pytest.warns(UserWarning, match=r"base and aligned \(llama\): decoding by CUDA graphs was off by"):
        made = runner_for(adapted(), Stuck)
    assert isinstance(made, LoraPairRunner)
    assert not isinstance(made._backbone, GraphModelRunner)


def test_scores_are_the_same() -> None:
    pair = decoding.pair("llama")
    prompts, completions = decoding.mixed_prompts(3), [[[5, 6, 7]], [[8]], [[9, 10, 11, 12]]]
    found, expected = (
        made.score(prompts, completions, [0.0, 0.7]) for made in (captured_sampler(pair), Sampler(pair))
    )
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_out_of_memory_shrinks_the_batch_and_changes_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = decoding.pair("llama")
    prompts, params = decoding.mixed_prompts(6), decoding.GREEDY.replace(alpha=0.7)
    made = captured_sampler(pair, max_slots=6)

    class Short(Tape):
        """There is memory for the steps of two rows, not of more."""

        def __init__(self, step: Any) -> None:
            super().__init__(step)
            if self.logits.shape[0] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")

    reserved, reserve, begin = [], PairRunner.reserve, PairLoop.begin

    def spied(self: PairRunner, slots: int, positions: Any = ()) -> None:
        reserved.append((slots, list(positions)))
        reserve(self, slots, positions)

    def begun(self: PairLoop, state: Any, *plan: Any) -> None:
        """Buffers that were cut short have room for all that these rows may come to be."""
        slots, positions = reserved[-1]
        assert slots == len(state.texts)
        assert positions == [1 + max(limits) for limits in state.limits]
        begin(self, state, *plan)

    monkeypatch.setattr(PairRunner, "reserve", spied)
    monkeypatch.setattr(PairLoop, "begin", begun)
    for model_runner in made.runner.model_runners:
        model_runner.capture = Short  # type: ignore[attr-defined]
    found = decoding.tokens(made.generate(prompts, params))
    assert found == decoding.tokens(Sampler(pair).generate(prompts, params))


def test_a_pair_whose_step_cannot_be_captured_decodes_by_its_models_steps() -> None:
    """Tried once: later calls, by engines of their own, go on without."""
    pair = decoding.pair("llama")
    prompts, params = decoding.mixed_prompts(4), decoding.GREEDY.replace(alpha=0.7)
    made, tried = captured_sampler(pair, max_slots=2), []

    class Alone(Tape):
        """Captures steps of one model, whose result are logits; not those of the pair."""

        def __init__(self, step: Any) -> None:
            super().__init__(step)
            if self.logits.dtype == torch.float64:
                tried.append(self)
                raise ValueError("nothing that torch raises\nand more")

    for model_runner in made.runner.model_runners:
        model_runner.capture = Alone  # type: ignore[attr-defined]
    message = r"base and aligned cannot be captured as one \(.*nothing that torch raises\)\); .* slower"
    with pytest.warns(UserWarning, match=message):
        found = decoding.tokens(made.generate(prompts, params))
    assert decoding.tokens(made.generate(prompts, params)) == found
    assert len(tried) == 1
    assert found == decoding.tokens(Sampler(pair).generate(prompts, params))
    assert all("nothing that torch raises" in one.reason for one in made.execution)


def test_a_call_may_use_as_much_memory_as_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call's buffers stay for the second, which begins with them: they are not taken from its budget."""
    made, total = captured_sampler(decoding.pair("llama")), 10**9

    def kept() -> int:
        buffers = [each for runner in made.runner.model_runners for each in runner.free_buffers]  # type: ignore[attr-defined]
        return sum(each.cache.nbytes() for each in buffers)

    monkeypatch.setattr("eddecode.sampler.free_bytes", lambda device: total - kept())
    made.generate(decoding.mixed_prompts(4), decoding.GREEDY.replace(alpha=0.7))
    gc.collect()
    assert kept() > 0
    assert made._budget(kept=True) == total // 4
    assert made._budget() == (total - kept()) // 4  # for scoring, which has buffers of its own


def test_a_batch_does_not_go_on_after_a_step_that_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in flight is lost: the tokens after it would be taken for the lost ones."""
    batch = captured_sampler(decoding.pair("llama")).open_batch()
    batch.add(0, decoding.mixed_prompts(1)[0], decoding.GREEDY.replace(max_new_tokens=9))
    batch.step()
    monkeypatch.setattr(Flight, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batch.step()
    with pytest.raises(EngineError, match="a step of this batch was interrupted, by Ctrl-C or an error"):
        batch.step()


def interrupted(flight: Flight) -> Any:
    raise KeyboardInterrupt


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(
        ParamsError, match=r"cuda_graphs=True captures steps of a CUDA device; the pair is on cpu"
    ):
        Sampler(decoding.pair(), cuda_graphs=True)


def test_to_device_copies_numbers_unchanged() -> None:
    found = to_device([[1, 2], [3, 4]], torch.float64, torch.device("cpu"))
    assert found.dtype == torch.float64
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0]]


# On a GPU ----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: graphs are captured on none")
@EVERY
def test_cuda_captures_what_the_tape_records(arch: str) -> None:
    model = tiny.tiny_model(arch).cuda()
    plain, captured = CachedModelRunner(model), GraphModelRunner(model, CudaGraph)
    texts = [decoding.ids(1, 9), decoding.ids(2, 2), decoding.ids(3, 12)]
    for text in texts:
        for model_runner in (plain, captured):
            model_runner.add(model_runner.prefill([text])[0])
    for turn in range(30):  # through three sizes of the buffers
        tokens = torch.tensor([decoding.ids(10 * turn + row, 1) for row in range(plain.occupied)])
        torch.testing.assert_close(captured.forward(tokens), plain.forward(tokens), rtol=1e-4, atol=1e-4)
        if turn in (8, 20):
            plain.remove(0)
            captured.remove(0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: graphs are captured on none")
def test_completions_on_cuda_are_the_same_with_and_without() -> None:
    base, aligned = tiny.tiny_pair_models("llama")
    pair = ModelPair.from_models(base.cuda(), aligned.cuda())
    prompts, params = decoding.mixed_prompts(12), decoding.GREEDY.replace(alpha=0.7, max_new_tokens=40)
    made = Sampler(pair, max_slots=5, cuda_graphs=True)
    found = decoding.tokens(made.generate(prompts, params))
    assert all(isinstance(model_runner, GraphModelRunner) for model_runner in made.runner.model_runners)
    assert found == decoding.tokens(Sampler(pair, max_slots=5).generate(prompts, params))


# The pair's captured step: sampling inside, the host one step behind ------------------------------------------------


def test_rows_that_stop_and_ids_that_are_forbidden_are_as_without_graphs() -> None:
    """What a step in flight gives a row that had stopped is dropped; limits depend on the position in a completion."""
    pair = decoding.pair("llama")
    prompts = decoding.mixed_prompts(9)
    stops = decoding.tokens(
        Sampler(pair).generate(prompts, SamplingParams(alpha=0.4, max_new_tokens=12, seed=5))
    )
    params = [
        SamplingParams(
            alpha=(0.4, -1.0, 0.0)[i % 3], max_new_tokens=12, seed=5, logprobs=True, top_k=(0, 40)[i % 2],
            top_p=(1.0, 0.9)[i // 3 % 2], plausibility=(0.0, 0.001)[i // 6], stop_token_ids=(stops[i][5],),
            min_new_tokens=(0, 8)[i % 2], suppress_tokens=tuple(stops[i][2:4]), suppress_eos=i == 4,
        )
        for i in range(9)
    ]  # fmt: skip
    made = captured_sampler(pair, max_slots=4)
    played = Tape.played
    found, expected = made.generate(prompts, params), Sampler(pair, max_slots=4).generate(prompts, params)
    assert Tape.played > played
    assert decoding.tokens(found) == decoding.tokens(expected)
    assert [c.finish_reason for c in found] == [c.finish_reason for c in expected]
    assert "stop" in {c.finish_reason for c in found}
    for one, other in zip(found, expected, strict=True):
        assert one.base_logprob == pytest.approx(other.base_logprob, abs=1e-3)
        assert one.aligned_logprob == pytest.approx(other.aligned_logprob, abs=1e-3)


def test_a_step_is_launched_before_the_last_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per token one launch; a row that may end anywhere costs one launch too many, one of known length none."""
    events: list[str] = []
    launch, collect = PairLoop.launch, Pipeline.collect
    monkeypatch.setattr(PairLoop, "launch", lambda self: events.append("launch") or launch(self))  # type: ignore[func-returns-value]
    monkeypatch.setattr(Pipeline, "collect", lambda self: events.append("read") or collect(self))  # type: ignore[func-returns-value]
    made = captured_sampler(decoding.pair("llama"))
    prompt = [decoding.prompt(3, 9, 8)]  # its steps fit into one capacity
    done = made.generate(
        prompt, decoding.GREEDY.replace(max_new_tokens=6)
    )  # the first token comes with the prompt
    assert events == [
        "launch",
        "launch",
        "read",
        "launch",
        "read",
        "launch",
        "read",
        "launch",
        "read",
        "read",
    ]
    events.clear()
    third = done[0].token_ids[2]
    stopped = made.generate(prompt, decoding.GREEDY.replace(max_new_tokens=6, stop_token_ids=(third,)))
    assert stopped[0].finish_reason == "stop"
    assert events.count("launch") == len(stopped[0].token_ids)


def test_requests_that_the_device_cannot_sample_are_decoded_one_step_at_a_time() -> None:
    pair = decoding.pair("llama")
    made = captured_sampler(pair)
    for params in (decoding.GREEDY.replace(alpha=0.5, access=Access(top_k=5)),):
        prompts = decoding.mixed_prompts(3)
        assert decoding.tokens(made.generate(prompts, params)) == decoding.tokens(
            Sampler(pair).generate(prompts, params)
        )


def test_rows_may_have_to_avoid_many_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there is room for in a step of its own; beyond that they are left to the host."""
    pair, launched, launch = decoding.pair("llama"), [], PairLoop.launch
    monkeypatch.setattr(PairLoop, "launch", lambda self: launched.append(self) or launch(self))
    made = captured_sampler(pair)
    prompts = decoding.mixed_prompts(2)
    params = [
        SamplingParams(
            alpha=0.5, max_new_tokens=4, seed=3, ignore_eos=True, suppress_tokens=tuple(range(300 - n))
        )
        for n in (20, 299)
    ]
    expected = decoding.tokens(Sampler(pair).generate(prompts, params))
    assert decoding.tokens(made.generate(prompts, params)) == expected
    assert min(expected[0]) >= 280 > min(expected[1])
    assert launched
    launched.clear()
    monkeypatch.setattr("eddecode.engine.pipeline.MAX_FORBIDDEN", 256)
    assert decoding.tokens(made.generate(prompts[0], params[0])) == expected[:1]
    assert not launched


def test_rows_of_one_model_alone_sample_its_own_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside rows of both models, which have fewer ids; also with penalties, and where drafts are asked for."""
    base, wide = tiny.tiny_model(vocab=300), tiny.tiny_model(vocab=310, seed=1)
    wide.lm_head.weight.data[300:305] *= 3
    own = tiny.tiny_tokenizer(extra=tuple(f"<|own {i}|>" for i in range(5)))
    pair = ModelPair.from_models(base, wide, tiny.tiny_tokenizer(), own)
    prompts = [decoding.prompt(i, 5, 5) for i in range(4)]
    params = [
        SamplingParams(
            alpha=(-1.0, 0.5, 0.0)[i % 3], max_new_tokens=8, seed=i, ignore_eos=True, top_p=0.9, logprobs=True,
            frequency_penalty=(0.0, 0.5)[i // 2],
        )
        for i in range(4)
    ]  # fmt: skip
    launched, launch = [], PairLoop.launch
    monkeypatch.setattr(PairLoop, "launch", lambda self: launched.append(self) or launch(self))
    expected = Sampler(pair).generate(prompts, params)
    made = captured_sampler(pair, speculation="base")
    played = Tape.played
    found = made.generate(prompts, params)
    assert decoding.tokens(found) == decoding.tokens(expected)
    assert Tape.played - played == len(launched) > 0  # every step is that of the pair
    assert max(found[0].token_ids) >= 300 > max(found[1].token_ids + found[2].token_ids)
    for one, other in zip(found, expected, strict=True):
        assert one.aligned_logprob == pytest.approx(other.aligned_logprob, abs=1e-3)


def test_logits_that_are_not_finite_name_the_request() -> None:
    base, aligned = tiny.tiny_pair_models("llama")
    pair = ModelPair.from_models(base, aligned)
    made = captured_sampler(pair)
    aligned.lm_head.weight.data[7] = float("nan")
    with pytest.raises(EngineError, match=r"the logits of the aligned model|prompt 0"):
        made.generate(decoding.mixed_prompts(1), decoding.GREEDY.replace(alpha=0.5))


def test_how_each_model_is_run_is_told() -> None:
    captured, plain = captured_sampler(decoding.pair("llama")), Sampler(decoding.pair("llama"))
    assert [(one.model, one.captured) for one in captured.execution] == [("base", True), ("aligned", True)]
    assert [one.captured for one in plain.execution] == [False, False]
    assert all(
        not one.batch_invariant and one.device == "cpu" and one.compiled_layers == 0
        for one in plain.execution
    )  # its own forward pass
    captured.runner.model_runners[0].device = torch.device("cuda", 0)  # type: ignore[attr-defined]
    assert not captured.execution[0].batch_invariant
    one = runner_for(adapted(), Tape)
    assert [(each.model, each.captured) for each in one.execution] == [("base", True), ("aligned", True)]
