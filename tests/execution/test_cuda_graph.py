"""The captured step, on a tape instead of CUDA's graphs; see `helpers.tape` for what that can show."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from eddecode.execution import cuda_graph as module
from eddecode.execution.cuda_graph import GraphModelRunner, bucket
from eddecode.execution.runner import CachedModelRunner
from eddecode.utils.memory import release_memory
from helpers import decoding, tiny
from helpers.graphs import EVERY, Driver, close
from helpers.tape import Tape

pytestmark = pytest.mark.usefixtures("on_a_tape")


# Exactness ---------------------------------------------------------------------------------------------------------


@EVERY
def test_rows_are_added_decoded_removed_truncated_and_outgrow_their_buffers(arch: str) -> None:
    """Every logit is that of the row's own whole text, while the rows use every bucket that they come to."""
    texts = Driver(tiny.tiny_model(arch), (3, 11, 5))
    texts.go()
    texts.go()
    texts.go(3)  # several tokens at a time: not captured
    texts.leave(0)
    texts.go()  # (2 rows, 16) fits exactly: no row fills up
    texts.enter(7)
    texts.rewind([len(row) - back for row, back in zip(texts.rows, (2, 0, 3), strict=True)])
    texts.go()
    played = Tape.played
    texts.go(2)
    assert Tape.played == played
    texts.go()  # past 16 positions: the buffers move
    texts.model_runner.trim()
    texts.go()
    texts.enter(1)
    texts.enter(2)  # five rows: eight slots
    texts.go()
    assert texts.captured == [(8, 32)]


@EVERY
def test_a_captured_step_gives_the_logits_of_a_plain_step(arch: str) -> None:
    model = tiny.tiny_model(arch)
    plain, captured = CachedModelRunner(model, dense_mask=True), GraphModelRunner(model, Tape)
    for text in (decoding.ids(1, 9), decoding.ids(2, 2), decoding.ids(3, 12)):
        for model_runner in (plain, captured):
            model_runner.add(model_runner.prefill([text])[0])
    for turn in range(6):
        tokens = torch.tensor([decoding.ids(10 * turn + row, 1) for row in range(3)])
        torch.testing.assert_close(captured.forward(tokens), plain.forward(tokens), rtol=1e-5, atol=1e-5)
    assert Tape.recorded == 2  # at 13 positions, and at 17
    assert Tape.played == 6


def test_a_step_that_captured_a_value_of_the_host_fails_the_self_check() -> None:
    """The tape is a judge only if it forgets the host: here is a model that looks at a Python list in its forward."""
    model = tiny.tiny_model("gpt2")
    texts = Driver(model, (4,))
    positions = model.transformer.wpe.forward
    lengths = texts.model_runner.cache.lengths

    def from_the_host(ids: torch.Tensor) -> torch.Tensor:
        return positions(torch.full_like(ids, lengths[0]) if lengths else ids)

    model.transformer.wpe.forward = from_the_host
    texts.go(check=False)
    first = texts.rows[0]
    texts.go(check=False)
    del model.transformer.wpe.forward
    found = texts.go(check=False)
    with pytest.raises(AssertionError):
        close(found[:, -1], model, texts.rows)
    assert len(first) == 5


def test_padding_rows_change_nothing_whatever_is_in_their_slots() -> None:
    texts = Driver(tiny.tiny_model("llama"), (6, 4, 5))

    def fill(value: float) -> None:
        with torch.inference_mode():
            for layer in texts.model_runner.cache.layers:
                layer.keys[3:] = layer.values[3:] = value

    fill(torch.nan)
    texts.go()
    fill(1e4)
    texts.enter(5)  # the slot that was filled up in between
    texts.go()
    assert texts.captured == [(4, 8)]


def test_logits_stay_when_the_next_step_has_run() -> None:
    texts = Driver(tiny.tiny_model("llama"), (6,))
    first = texts.go()
    kept = first.clone()
    texts.go()
    assert torch.equal(first, kept)


def test_some_of_the_slots_run_without_a_graph() -> None:
    texts = Driver(tiny.tiny_model("llama"), (6, 4, 5, 3))
    found = texts.model_runner.forward(torch.tensor([[7], [9]]), slice(1, None, 2))
    close(found[:, 0], texts.model, [[*texts.rows[1], 7], [*texts.rows[3], 9]])
    assert texts.model_runner.cache.lengths == [6, 5, 5, 4]
    assert Tape.recorded == 0


# What is captured, and for how long --------------------------------------------------------------------------------


def test_buckets_are_powers_of_two() -> None:
    assert [bucket(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 64, 65)] == [1, 1, 2, 4, 4, 8, 8, 16, 64, 128]
    assert [bucket(n, 256) for n in (1, 256, 257, 1000)] == [256, 256, 512, 1024]


def test_a_step_is_captured_once_per_number_of_rows_and_capacity() -> None:
    texts = Driver(tiny.tiny_model("llama"), (3, 3, 3))
    for _ in range(5):
        texts.go()
    assert (texts.captured, Tape.recorded, Tape.played) == ([(4, 8)], 1, 5)
    texts.go()
    assert texts.captured == [(4, 8), (4, 16)]
    texts.leave(0)
    texts.go()
    assert texts.captured == [(4, 8), (4, 16), (2, 16)]
    texts.rewind([3, 3])
    texts.enter(1)
    texts.go()
    assert (texts.captured, Tape.recorded) == ([(4, 16), (2, 16), (4, 8)], 3)


def test_a_limited_number_of_graphs_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GRAPHS", 2)
    texts = Driver(tiny.tiny_model("llama"), (3, 3, 3, 3))
    texts.go()
    texts.leave(3)
    texts.leave(2)
    texts.go()
    texts.leave(1)
    texts.go()
    assert texts.captured == [(2, 8), (1, 8)]


def test_memory_is_counted_and_given_back() -> None:
    texts = Driver(tiny.tiny_model("llama"), (3, 3))
    texts.go()
    buffers = texts.model_runner.cache.nbytes()
    assert (
        buffers == 2 * 2 * 2 * 16 * 2 * 8 * 4
    )  # layers, keys and values, slots, room, heads, head_dim, float32
    assert texts.model_runner.buffers.nbytes == buffers + Tape.nbytes
    texts.model_runner.trim()
    assert texts.model_runner.buffers.nbytes == buffers // 4  # 4 positions of 16
    texts.go()


def test_a_runner_reuses_the_buffers_of_an_unused_one() -> None:
    model = tiny.tiny_model("llama")
    first = GraphModelRunner(model, Tape)
    texts = Driver(model, (3,), first)
    texts.go()
    beside = first.clone_empty()  # while the first one lives it keeps its own
    assert beside.buffers is not first.buffers
    held = first.buffers
    del first, texts
    gc.collect()
    heir = beside.clone_empty()
    assert heir.buffers is held
    texts = Driver(model, (5,), heir)
    texts.go()
    assert (texts.captured, Tape.recorded) == ([(1, 8)], 1)


def test_old_contents_of_reused_buffers_have_no_effect() -> None:
    model = tiny.tiny_model("llama")
    first = GraphModelRunner(model, Tape)
    Driver(model, (3,), first).go()
    heir = first.clone_empty()
    with torch.inference_mode():
        for layer in first.cache.layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)  # as after a run that ended in an overflow
    held = first.buffers
    del first
    gc.collect()
    heir = heir.clone_empty()
    assert heir.buffers is held
    Driver(model, (5,), heir).go()


def test_large_buffers_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    first = GraphModelRunner(tiny.tiny_model("llama"), Tape)
    Driver(first.model, (3,), first).go()
    idle = first.free_buffers
    del first
    gc.collect()
    assert idle == []


def test_buffers_that_were_kept_once_are_kept_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call begins with is not free any more, and was for it: every second call would capture anew."""
    made = GraphModelRunner(tiny.tiny_model("llama"), Tape)
    Driver(made.model, (3,), made).go()
    size = made.buffers.nbytes
    del made
    gc.collect()
    living: list[weakref.ref[GraphModelRunner]] = []
    total = 4 * size + 100

    def free(
        device: torch.device,
    ) -> int:  # this model and another one, as large, hold buffers of an earlier call
        return total - 2 * size * (len(living) > 0)

    monkeypatch.setattr(module, "free_bytes", free)
    runner = GraphModelRunner(tiny.tiny_model("llama"), Tape)
    idle = runner.free_buffers
    for _ in range(3):
        Driver(runner.model, (3,), runner).go()
        before, again = runner.buffers, (runner.model, runner.capture)
        living.append(weakref.ref(runner))
        del runner
        gc.collect()
        assert list(idle) == [before]
        runner = GraphModelRunner(*again, free_buffers=idle)
        assert runner.buffers is before


def test_idle_buffers_are_dropped_where_anybody_is_short_of_memory() -> None:
    """Such as a scorer, or a sampler of another pair."""
    first = GraphModelRunner(tiny.tiny_model("llama"), Tape)
    second = first.clone_empty()
    Driver(first.model, (3,), first).go()
    Driver(first.model, (3,), second).go()
    buffers = first.buffers
    del first
    gc.collect()
    assert list(second.free_buffers) == [buffers]
    release_memory()
    assert second.free_buffers == []
    assert not buffers.steps
    assert second.buffers.steps  # in use


def test_trimming_drops_free_buffers() -> None:
    first = GraphModelRunner(tiny.tiny_model("llama"), Tape)
    second = first.clone_empty()
    Driver(first.model, (3,), first).go()
    del first
    gc.collect()
    assert len(second.free_buffers) == 1
    second.trim()
    assert second.free_buffers == []


def test_buffers_that_are_not_kept_are_not_held_by_steps_of_the_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of a pair is over the buffers of both models: of which the small one may keep its own."""
    small, large = (GraphModelRunner(tiny.tiny_model("llama"), Tape) for _ in range(2))
    Driver(small.model, (3,), small).go()
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    large = large.clone_empty()
    Driver(large.model, (3,), large).go()
    steps = small.buffers.pair_steps
    large.buffers.pair_steps = steps
    steps["a step"] = next(iter(small.buffers.steps.values()))  # it has their size
    del large
    gc.collect()
    assert steps == {}
    assert list(small.buffers.steps) == [(1, 8)]
