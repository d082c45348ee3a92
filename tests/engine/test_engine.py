"""The decode loop: who enters when, what is read how often, and how a row ends."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from eddecode.engine import engine as engine_module
from eddecode.engine import scheduler as scheduler_module
from eddecode.engine.engine import Engine
from eddecode.engine.pipeline import Pipeline
from eddecode.engine.sequence import Request, SequenceState
from eddecode.errors import ContextError, ParamsError
from eddecode.execution.cuda_graph import bucket
from eddecode.execution.factory import separate_pair_runner
from eddecode.execution.kv_cache import LayerKVCache
from eddecode.execution.runner import PairRunner
from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams
from eddecode.sampling.rng import stream_key
from helpers import reference
from helpers.decoding import GREEDY, ids, pair, prompt, sampler, tokens


def request(number: int = 0, eos: frozenset[int] = frozenset(), **changes: Any) -> Request:
    params = GREEDY.replace(**changes)
    p = prompt(number, 3 + number, 5)
    weights = (1 + params.alpha, -params.alpha)
    return Request(number, 0, p.ids, params, weights, eos, stream_key(0, p.digest, 0))


def engine(**options: Any) -> Engine:
    return Engine(separate_pair_runner(pair()), pair().vocabulary, windows=(256, 256), **options)


def queued(requests: Sequence[Request], **options: Any) -> tuple[Engine, list[SequenceState]]:
    made = engine(**options)
    return made, made.submit(requests)


def run(made: Engine) -> list[SequenceState]:
    done = []
    while made.busy:
        done += made.step()
    return done


# Entering and leaving --------------------------------------------------------------------------------------------


def test_a_waiting_row_enters_as_soon_as_one_leaves() -> None:
    """Three slots, rows of 2 to 9 tokens: never more than three at once, and never fewer while any wait."""
    made = engine(max_slots=3)
    lengths = [9, 2, 5, 3, 2, 7, 2]
    rows = made.submit([request(i, max_new_tokens=n) for i, n in enumerate(lengths)])
    done: list[SequenceState] = []
    steps = 0
    while made.busy:
        done += made.step()
        steps += 1
        assert len(made.scheduler.running) <= 3
        assert all(decoder.occupied == len(made.scheduler.running) for decoder in made.runner.model_runners)
    assert {id(row) for row in done} == {id(row) for row in rows}
    assert [len(row.tokens) for row in rows] == lengths
    assert steps <= sum(lengths) / 3 + 2 * max(lengths)  # far below one after the other
    assert steps < sum(lengths)


def test_a_finished_row_is_reported_once_and_at_once() -> None:
    made = engine()
    short, long = made.submit([request(0, max_new_tokens=1), request(1, max_new_tokens=6)])
    assert made.step() == [short]
    assert run(made) == [long]
    assert made.step() == []


def test_a_text_that_many_requests_begin_with_is_read_once_by_each_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every α and every sample of a prompt share both prefills, even if the slots do not hold them all at once."""
    read: Counter[tuple[int, tuple[int, ...]]] = Counter()
    real = PairRunner.prefill

    def counted(self: PairRunner, model: int, texts: Any) -> Any:
        read.update((model, text) for text in texts)
        return real(self, model, texts)

    monkeypatch.setattr(PairRunner, "prefill", counted)
    prompts = [prompt(1, 4, 6), prompt(2, 7, 3), prompt(1, 4, 6)]
    made = Sampler(pair(), max_slots=2)
    made.generate(prompts, [SamplingParams(alpha=a, n=5, max_new_tokens=3) for a in (0.0, 1.0, 2.0)])
    assert read == Counter({(m, text): 1 for p in prompts[:2] for m, text in enumerate(p.ids)})


def test_prefixes_are_dropped_when_nobody_waits_for_them() -> None:
    made = engine(max_slots=2)
    made.submit([request(i % 3, seed=i, max_new_tokens=3) for i in range(9)])
    run(made)
    assert len(made.scheduler.prefixes) == 0
    assert all(decoder.occupied == 0 for decoder in made.runner.model_runners)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_memory_budget_bounds_the_rows(rows: int) -> None:
    """Room for `rows` rows of prompt and completion in both models: that many run together, and no more."""
    requests = [request(0, max_new_tokens=8, seed=i) for i in range(7)]
    positions = max(map(len, requests[0].prompts)) + 8
    per_position = 2 * (2 * 2 * 2 * 8 * 4)  # models × layers × (keys, values) × heads × head_dim × float32
    made = engine(memory_budget=rows * positions * per_position)
    made.submit(requests)
    widest = 0
    while made.busy:
        made.step()
        widest = max(widest, len(made.scheduler.running))
    assert widest == rows


def test_memory_that_runs_out_halves_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row runs (it finds out what a token costs), eleven enter and do not fit: six slots are left, not one."""
    made = engine(max_slots=12, memory_budget=10**9)
    rows = made.submit([request(i, max_new_tokens=5) for i in range(12)])
    made.step()
    assert len(made.scheduler.running) == 1
    real, failed = PairRunner.reserve, []

    def short(self: PairRunner, slots: int, positions: Sequence[int] = ()) -> None:
        if not failed:
            failed.append(slots)
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, slots, positions)

    monkeypatch.setattr(PairRunner, "reserve", short)
    made.step()
    assert failed == [12]
    assert made.scheduler.max_slots == 6
    run(made)
    assert all(len(row.tokens) == 5 for row in rows)


def test_buffers_are_as_long_as_they_will_have_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU room takes no memory before it is written; a buffer that grows is copied."""
    made = engine(max_slots=12)
    rows = made.submit([request(i, max_new_tokens=150) for i in range(12)])
    made.step()
    assert len(made.scheduler.running) == 12
    grown, real = [], LayerKVCache._reallocated

    def counted(old: torch.Tensor, slots: int, capacity: int, used: tuple[int, int]) -> torch.Tensor:
        grown.append(capacity)
        return real(old, slots, capacity, used)

    monkeypatch.setattr(LayerKVCache, "_reallocated", staticmethod(counted))
    run(made)
    assert not grown
    assert all(len(row.tokens) == 150 for row in rows)


def test_rows_that_enter_together_take_memory_twice_for_a_few_prompts_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU: states are prefilled, then copied into the slots; what a token costs is known beforehand."""
    monkeypatch.setattr(PairRunner, "adds_together", True)
    monkeypatch.setattr(engine_module, "ENTERING_TOKENS", 20)  # three prompts
    requests = [request(i // 2, seed=i, max_new_tokens=6) for i in range(10)]  # two of each prompt
    alone, apart = queued(requests, max_slots=1)
    run(alone)
    made, rows = queued(requests, max_slots=12, memory_budget=10**9)
    entered: list[int] = []
    real = PairRunner.add_all

    def counted(self: PairRunner, parts: Any) -> None:
        texts = {prefix.ids for of_each_model in parts for prefix in of_each_model[:1]}
        entered.append(len(parts))
        assert len(parts) <= 2 or sum(map(len, texts)) <= 20
        real(self, parts)
        states.extend(weakref.ref(prefix) for of_each_model in parts for prefix in of_each_model)

    real_prefill = PairRunner.prefill

    def prefilled(self: PairRunner, model: int, group: Any) -> Any:
        assert all(state() is None for state in states)  # of the groups before: they are in their slots
        return real_prefill(self, model, group)

    states: list[weakref.ref[Any]] = []
    monkeypatch.setattr(PairRunner, "add_all", counted)
    monkeypatch.setattr(PairRunner, "prefill", prefilled)
    made.step()
    assert len(made.scheduler.running) == 10  # in the first step
    assert entered == [6, 4]
    run(made)
    assert [s.tokens for s in rows] == [s.tokens for s in apart]


def test_the_memory_budget_counts_the_rows_that_buffers_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured steps have powers of two as rows: where three fit, and not four, two run together."""
    monkeypatch.setattr(PairRunner, "rows_held", lambda self, count: bucket(count))
    requests = [request(0, max_new_tokens=8, seed=i) for i in range(7)]
    positions, per_position = max(map(len, requests[0].prompts)) + 8, 2 * (2 * 2 * 2 * 8 * 4)
    made = engine(memory_budget=3 * positions * per_position)
    made.submit(requests)
    widest = 0
    while made.busy:
        made.step()
        widest = max(widest, len(made.scheduler.running))
    assert widest == 2


def test_steps_that_are_forgotten_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of steps in flight may be freed after it."""

    class Flight:
        def wait(self) -> None:
            waited.append(self)

    waited: list[Any] = []
    pipeline = Pipeline(None)  # type: ignore[arg-type]
    pipeline._in_flight = flights = [Flight(), Flight()]  # type: ignore[assignment, list-item]
    expected = list(reversed(flights))
    pipeline.drop()
    assert waited == expected
    assert pipeline.idle


def test_nothing_is_queued_if_one_request_is_too_long() -> None:
    made = engine()
    with pytest.raises(ContextError, match=r"prompt 1, sample 0: the base model reads at most 256 tokens"):
        made.submit([request(0), request(1, max_new_tokens=253)])
    assert not made.busy


def test_prefill_batches_stay_within_their_size() -> None:
    texts = sorted((ids(i, 1 + (37 * i) % 200) for i in range(60)), key=len)
    batches = scheduler_module.prefill_batches(texts)
    assert [text for batch in batches for text in batch] == texts
    for batch in batches:
        assert len(batch) * max(map(len, batch)) <= scheduler_module.PREFILL_TOKENS
    assert scheduler_module.prefill_batches([(1,) * 5000]) == [[(1,) * 5000]]


# How a row ends --------------------------------------------------------------------------------------------------


def free(alpha: float = 0.5, count: int = 10) -> list[int]:
    """What greedy decoding gives if nothing ends it."""
    return reference.generate(pair().models, prompt(0, 3, 5).ids, alpha, count).ids


def greedy(eos: frozenset[int] = frozenset(), **changes: Any) -> SequenceState:
    made = engine()
    row = made.submit([request(0, eos, alpha=0.5, **changes)])[0]
    run(made)
    return row


def test_eos_and_stop_ids_and_length() -> None:
    text = free()
    assert len(set(text[:5])) == 5
    row = greedy()
    assert (row.tokens, row.finish_reason) == (text, "length")
    row = greedy(frozenset({text[3]}), ignore_eos=False)
    assert (row.tokens, row.finish_reason) == (text[:4], "eos")
    row = greedy(frozenset({text[3]}), ignore_eos=True)
    assert (row.tokens, row.finish_reason) == (text, "length")
    row = greedy(stop_token_ids=(text[2], text[4]))
    assert (row.tokens, row.finish_reason) == (text[:3], "stop")
    row = greedy(frozenset({text[0]}), ignore_eos=False)
    assert (row.tokens, row.finish_reason) == (text[:1], "eos")
    row = greedy(frozenset({text[2]}), ignore_eos=True, stop_token_ids=(text[2],))
    assert (row.tokens, row.finish_reason) == (text[:3], "stop")
    row = greedy(frozenset({text[9]}), ignore_eos=False)  # EOS as the very last token is an end, not a cut
    assert (row.tokens, row.finish_reason) == (text, "eos")


def without(banned: set[int], steps: int, rest: int) -> list[int]:
    """The oracle, with ids that the first `steps` tokens must not be."""
    allowed = set(range(300)) - banned
    models, p = pair().models, prompt(0, 3, 5)
    start = reference.generate(models, p.ids, 0.5, steps, allowed=allowed).ids
    later = tuple((*text, *start) for text in p.ids)
    return start + reference.generate(models, later, 0.5, rest, eos=banned).ids


@pytest.mark.parametrize("minimum", [1, 4, 10])
def test_no_end_before_the_minimum(minimum: int) -> None:
    """EOS and stop ids are not sampled at all before it, and end the completion right after it."""
    text = free()
    eos, stop = text[0], text[1]
    row = greedy(frozenset({eos}), ignore_eos=False, stop_token_ids=(stop,), min_new_tokens=minimum)
    assert row.tokens == without({eos, stop}, minimum, 10 - minimum)
    assert len(row.tokens) >= minimum
    assert not {eos, stop} & set(row.tokens[:minimum])


def test_suppressed_tokens_are_never_sampled() -> None:
    text = free()
    row = greedy(frozenset({text[0]}), suppress_tokens=(text[1],), suppress_eos=True)
    assert row.tokens == without({text[0], text[1]}, 10, 0)
    assert row.finish_reason == "length"


def test_logprobs_are_relative_to_what_may_be_sampled() -> None:
    """The contrast's is a distribution over the allowed ids; the models' own are over all that they know."""
    text = free()
    row = greedy(suppress_tokens=(text[0], 7, 8))
    allowed = set(range(300)) - {text[0], 7, 8}
    naive = reference.generate(pair().models, prompt(0, 3, 5).ids, 0.5, 10, allowed=allowed)
    assert row.tokens == naive.ids
    torch.testing.assert_close(
        torch.tensor(row.logprobs, dtype=torch.float64),
        torch.tensor(naive.logprobs, dtype=torch.float64),
        rtol=1e-4,
        atol=1e-4,
    )


def test_no_slots_is_an_error() -> None:
    with pytest.raises(ParamsError, match="max_slots is 0; expected at least 1"):
        sampler(max_slots=0)


def test_ids_beyond_the_logits_may_be_suppressed_and_stop_nothing() -> None:
    params = GREEDY.replace(suppress_tokens=(5_000,), stop_token_ids=(6_000,))
    assert tokens(sampler().generate(prompt(0, 3, 5), params)) == tokens(
        sampler().generate(prompt(0, 3, 5), GREEDY)
    )
