"""The captured step, on a tape instead of CUDA's graphs; see `tape` for what that shows and what it does not."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import decoding
import numpy as np
import pytest
import reference
import tiny
import torch
from tape import Tape
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from benchmarks.pairs import Shape, build
from eddecode import cache
from eddecode import graph as module
from eddecode.capture import CudaGraph, rehearse
from eddecode.decoder import RecomputeDecoder, SlotDecoder
from eddecode.errors import EngineError, ParamsError, UnsupportedLayersError
from eddecode.graph import GraphDecoder, bucket
from eddecode.pair import ModelPair
from eddecode.runner import PairRunner, decoder_for
from eddecode.sampler import Sampler
from eddecode.sending import sent
from eddecode.shared import SharedRunner, runner_for
from eddecode_kernels import compiler
from eddecode_kernels.problem import UnavailableError

EVERY = pytest.mark.parametrize("arch", list(tiny.ARCHITECTURES))


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled layers, as on a GPU: a tape hears only what goes through torch. Small buckets, so that texts grow."""
    monkeypatch.setattr(compiler, "_library", lambda: UnavailableError("switched off"))
    monkeypatch.setenv("EDDECODE_KERNELS", "reference")
    monkeypatch.setattr(cache, "LENGTH_STEP", 8)
    monkeypatch.setattr(module, "READ", 8)
    monkeypatch.setattr(module, "ROOM", 16)
    Tape.recorded = Tape.played = 0


def close(found: torch.Tensor, model: Any, rows: list[list[int]]) -> None:
    wanted = np.stack([reference.next_logits(model, row) for row in rows])
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=1e-4, atol=2e-4)


class Driver:
    """A decoder, and the texts that its rows should have read by now."""

    def __init__(
        self, model: Any, lengths: tuple[int, ...] = (), decoder: GraphDecoder | None = None
    ) -> None:
        self.model, self.rows = model, list[list[int]]()
        self.decoder = decoder or GraphDecoder(model, Tape)
        self.seed = itertools.count(100)
        for length in lengths:
            self.enter(length)

    def enter(self, length: int) -> None:
        text = decoding.ids(next(self.seed), length)
        self.decoder.add(self.decoder.prefill([text])[0])
        self.rows.append(list(text))

    def leave(self, slot: int) -> None:
        self.decoder.remove(slot)
        self.rows[slot] = self.rows[-1]
        self.rows.pop()

    def rewind(self, lengths: list[int]) -> None:
        self.decoder.rewind(lengths)
        self.rows = [row[:length] for row, length in zip(self.rows, lengths, strict=True)]

    def go(self, count: int = 1, check: bool = True) -> torch.Tensor:
        """Read `count` random tokens at once; the logits of the last are those of plain forward passes."""
        new = [decoding.ids(next(self.seed), count) for _ in self.rows]
        found = self.decoder.extend(torch.tensor(new))
        self.rows = [[*row, *more] for row, more in zip(self.rows, new, strict=True)]
        if check:
            close(found[:, -1], self.model, self.rows)
        return found

    @property
    def captured(self) -> list[tuple[int, int]]:
        return list(self.decoder.held.steps)


# Exactness ---------------------------------------------------------------------------------------------------------


@EVERY
def test_rows_enter_go_on_leave_are_shortened_and_outgrow_their_buffers(arch: str) -> None:
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
    texts.decoder.trim()
    texts.go()
    texts.enter(1)
    texts.enter(2)  # five rows: eight slots
    texts.go()
    assert texts.captured == [(8, 32)]


@EVERY
def test_a_captured_step_gives_what_the_plain_one_gives(arch: str) -> None:
    model = tiny.tiny_model(arch)
    plain, captured = SlotDecoder(model, own_attention=True), GraphDecoder(model, Tape)
    for text in (decoding.ids(1, 9), decoding.ids(2, 2), decoding.ids(3, 12)):
        for decoder in (plain, captured):
            decoder.add(decoder.prefill([text])[0])
    for turn in range(6):
        tokens = torch.tensor([decoding.ids(10 * turn + row, 1) for row in range(3)])
        torch.testing.assert_close(captured.extend(tokens), plain.extend(tokens), rtol=1e-5, atol=1e-5)
    assert Tape.recorded == 2  # at 13 positions, and at 17
    assert Tape.played == 6


def test_a_step_that_bakes_in_what_the_host_knew_is_found_out() -> None:
    """The tape is a judge only if it forgets the host: here is a model that looks at a Python list in its forward."""
    model = tiny.tiny_model("gpt2")
    texts = Driver(model, (4,))
    positions = model.transformer.wpe.forward
    lengths = texts.decoder.cache.lengths

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


def test_rows_that_fill_up_change_nothing_whatever_stands_in_their_slots() -> None:
    texts = Driver(tiny.tiny_model("llama"), (6, 4, 5))

    def fill(value: float) -> None:
        with torch.inference_mode():
            for layer in texts.decoder.cache.layers:
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


def test_some_of_the_slots_go_the_plain_way() -> None:
    texts = Driver(tiny.tiny_model("llama"), (6, 4, 5, 3))
    found = texts.decoder.extend(torch.tensor([[7], [9]]), slice(1, None, 2))
    close(found[:, 0], texts.model, [[*texts.rows[1], 7], [*texts.rows[3], 9]])
    assert texts.decoder.cache.lengths == [6, 5, 5, 4]
    assert Tape.recorded == 0


# What is captured, and for how long --------------------------------------------------------------------------------


def test_buckets_are_powers_of_two() -> None:
    assert [bucket(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 64, 65)] == [1, 1, 2, 4, 4, 8, 8, 16, 64, 128]
    assert [bucket(n, 256) for n in (1, 256, 257, 1000)] == [256, 256, 512, 1024]


def test_a_step_is_captured_once_for_its_rows_and_its_reach() -> None:
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


def test_only_so_many_steps_stay_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STEPS", 2)
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
    buffers = texts.decoder.cache.nbytes()
    assert (
        buffers == 2 * 2 * 2 * 16 * 2 * 8 * 4
    )  # layers, keys and values, slots, room, heads, head_dim, float32
    assert texts.decoder.held.nbytes == buffers + Tape.nbytes
    texts.decoder.trim()
    assert texts.decoder.held.nbytes == buffers // 4  # 4 positions of 16
    texts.go()


def test_a_decoder_takes_over_what_its_predecessor_left() -> None:
    model = tiny.tiny_model("llama")
    first = GraphDecoder(model, Tape)
    texts = Driver(model, (3,), first)
    texts.go()
    beside = first.fresh()  # while the first one lives it keeps its own
    assert beside.held is not first.held
    held = first.held
    del first, texts
    gc.collect()
    heir = beside.fresh()
    assert heir.held is held
    texts = Driver(model, (5,), heir)
    texts.go()
    assert (texts.captured, Tape.recorded) == ([(1, 8)], 1)


def test_what_a_predecessor_left_in_its_buffers_reaches_nobody() -> None:
    model = tiny.tiny_model("llama")
    first = GraphDecoder(model, Tape)
    Driver(model, (3,), first).go()
    heir = first.fresh()
    with torch.inference_mode():
        for layer in first.cache.layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)  # as after a run that ended in an overflow
    held = first.held
    del first
    gc.collect()
    heir = heir.fresh()
    assert heir.held is held
    Driver(model, (5,), heir).go()


def test_large_buffers_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    first = GraphDecoder(tiny.tiny_model("llama"), Tape)
    Driver(first.model, (3,), first).go()
    idle = first.idle
    del first
    gc.collect()
    assert idle == []


def test_trimming_drops_what_waits_for_an_heir() -> None:
    first = GraphDecoder(tiny.tiny_model("llama"), Tape)
    second = first.fresh()
    Driver(first.model, (3,), first).go()
    del first
    gc.collect()
    assert len(second.idle) == 1
    second.trim()
    assert second.idle == []


# What cannot be captured -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x * x.max().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 0],
        lambda x: x.nonzero().float(),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.where(x > 0)[0].float(),
        lambda x: torch.ones(3).repeat_interleave(torch.tensor([1, 2, 3])),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_a_rehearsal_refuses_what_depends_on_values(step: Any, inference: bool) -> None:
    x = torch.tensor([1.0, -2.0, 3.0])
    with (
        torch.inference_mode(inference),
        pytest.raises(UnsupportedLayersError, match="depends on the values"),
    ):
        rehearse(lambda: step(x))


@torch.inference_mode()
def test_a_rehearsal_passes_what_depends_on_shapes_and_gives_the_result() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0]])

    def step() -> torch.Tensor:
        y = torch.where(x > 0, x, 0.0)[:, torch.tensor([2, 0])].masked_fill(x[:, :2] < 0, 9.0)
        y[torch.tensor([0]), torch.tensor([1])] = 5.0
        return y.reshape(2).flatten()

    assert rehearse(step).tolist() == [3.0, 5.0]


def test_experts_in_a_python_loop_are_refused_and_decoded_without() -> None:
    """Mixtral's plain implementation asks which experts were hit; the grouped one does not."""
    model = tiny.tiny_model("mixtral")
    assert isinstance(decoder_for(model, "base", Tape), GraphDecoder)
    model.set_experts_implementation("eager")
    with pytest.warns(
        UserWarning, match=r"base \(mixtral\): decoding by CUDA graphs failed: .* values of tensors"
    ):
        found = decoder_for(model, "base", Tape)
    assert type(found) is SlotDecoder


def test_a_capture_that_goes_wrong_is_not_used() -> None:
    class Stuck(Tape):
        """Plays back without having been told anything new."""

        def __call__(self) -> torch.Tensor:
            return self.logits

    with pytest.warns(UserWarning, match=r"aligned \(llama\): decoding by CUDA graphs was off by"):
        found = decoder_for(tiny.tiny_model("llama"), "aligned", Stuck)
    assert type(found) is SlotDecoder


def test_a_capture_that_fails_later_says_what_to_do() -> None:
    def refuse(step: Any, beside: Any) -> Any:
        raise RuntimeError("CUDA error: operation not permitted\nmore of it")

    texts = Driver(tiny.tiny_model("llama"), (3,))
    texts.go()
    texts.decoder.capture = refuse
    texts.enter(3)
    with pytest.raises(
        EngineError, match=r"the step of 2 rows over 8 positions cannot be captured \(CUDA error: operation not"
        r" permitted\); decode without cuda_graphs"
    ):  # fmt: skip
        texts.go()
    texts.decoder.capture = Tape
    texts.go()  # nothing was counted as read


def test_no_memory_for_a_capture_is_the_engines_affair() -> None:
    def refuse(step: Any, beside: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    texts = Driver(tiny.tiny_model("llama"), (3,))
    texts.decoder.capture = refuse
    with pytest.raises(torch.OutOfMemoryError):
        texts.go()


def test_offloaded_weights_are_not_captured() -> None:
    from accelerate import cpu_offload

    model = tiny.tiny_model("llama")
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.warns(UserWarning, match=r"decoding by CUDA graphs failed: .*moved as they are needed"):
        decoder_for(model, "base", Tape)


def test_models_without_slots_are_recomputed_as_ever() -> None:
    from transformers import MambaConfig

    config = MambaConfig(hidden_size=32, state_size=8, num_hidden_layers=2, vocab_size=97)
    model = AutoModelForCausalLM.from_config(config).eval()
    with (
        pytest.warns(UserWarning, match="decoding by CUDA graphs"),
        pytest.warns(UserWarning, match="recomputed for every token"),
    ):
        assert isinstance(decoder_for(model, "base", Tape), RecomputeDecoder)


ROPE = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 24,
    },
}


@pytest.mark.parametrize("kind", list(ROPE))
def test_frequencies_that_may_change_with_the_length(kind: str) -> None:
    """Captured or refused, by the version of transformers: within the window the logits are right either way."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": tiny.VOCAB, "initializer_range": 0.3, "pad_token_id": 0,
             "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    longest = {"max_position_embeddings": 64}
    config = {
        "dynamic": lambda: LlamaConfig(**shape, **longest, rope_parameters=ROPE[kind]),
        "longrope": lambda: Phi3Config(
            **shape, **longest, original_max_position_embeddings=24, rope_parameters=ROPE[kind]
        ),
    }[kind]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    texts = Driver(model, (3, 7))
    try:
        for _ in range(3):
            texts.go()
    except UnsupportedLayersError as refused:
        assert "depends on the values" in str(refused)  # noqa: PT017


# The runner and the sampler ----------------------------------------------------------------------------------------


def captured_sampler(pair: ModelPair, **options: Any) -> Sampler:
    made = Sampler(pair, **options)
    made._runner = PairRunner(pair, Tape)
    assert all(isinstance(decoder, GraphDecoder) for decoder in made.runner.decoders)
    return made


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


def test_sampled_completions_are_the_same_and_calls_leave_their_captures_to_the_next() -> None:
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


def adapted() -> ModelPair:
    """A pair on one backbone."""
    made = build(
        Shape(hidden=32, feed_forward=48, layers=2, heads=4, vocabulary=tiny.VOCAB), "float32", "lora"
    )
    pair = made.model_pair()
    pair.aligned.low_rank_factors = dict(made.factors)
    return pair


@pytest.mark.parametrize("speculation", ["off", "base"])
def test_an_adapter_and_its_base_are_captured_in_one_step(speculation: Any) -> None:
    pair = adapted()
    prompts, params = decoding.mixed_prompts(6), decoding.GREEDY.replace(alpha=0.8)
    made = Sampler(pair, max_slots=3, speculation=speculation)
    made._runner = runner_for(pair, Tape)
    assert isinstance(made.runner, SharedRunner)
    assert isinstance(made.runner._backbone, GraphDecoder)
    played = Tape.played
    found = decoding.tokens(made.generate(prompts, params))
    assert Tape.played > played
    plain = Sampler(pair)
    plain._runner = PairRunner(pair)
    assert found == decoding.tokens(plain.generate(prompts, params))


def test_an_adapter_that_cannot_be_captured_still_shares_its_backbone() -> None:
    class Stuck(Tape):
        def __call__(self) -> torch.Tensor:
            return self.logits

    with pytest.warns(UserWarning, match=r"base and aligned \(llama\): decoding by CUDA graphs was off by"):
        made = runner_for(adapted(), Stuck)
    assert isinstance(made, SharedRunner)
    assert not isinstance(made._backbone, GraphDecoder)


def test_scores_are_the_same() -> None:
    pair = decoding.pair("llama")
    prompts, completions = decoding.mixed_prompts(3), [[[5, 6, 7]], [[8]], [[9, 10, 11, 12]]]
    found, expected = (
        made.score(prompts, completions, [0.0, 0.7]) for made in (captured_sampler(pair), Sampler(pair))
    )
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_a_shortage_of_memory_shrinks_the_batch_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = decoding.pair("llama")
    prompts, params = decoding.mixed_prompts(6), decoding.GREEDY.replace(alpha=0.7)
    made = captured_sampler(pair, max_slots=6)

    class Short(Tape):
        """There is memory for the steps of two rows, not of more."""

        def __init__(self, step: Any, beside: Any = None) -> None:
            super().__init__(step, beside)
            if self.logits.shape[0] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")

    for decoder in made.runner.decoders:
        decoder.capture = Short  # type: ignore[attr-defined]
    found = decoding.tokens(made.generate(prompts, params))
    assert found == decoding.tokens(Sampler(pair).generate(prompts, params))


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(
        ParamsError, match=r"cuda_graphs=True captures steps of a CUDA device; the pair is on cpu"
    ):
        Sampler(decoding.pair(), cuda_graphs=True)


def test_numbers_arrive_on_the_device_as_they_are() -> None:
    found = sent([[1, 2], [3, 4]], torch.float64, torch.device("cpu"))
    assert found.dtype == torch.float64
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0]]


# On a GPU ----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: graphs are captured on none")
@EVERY
def test_cuda_captures_what_the_tape_records(arch: str) -> None:
    model = tiny.tiny_model(arch).cuda()
    plain, captured = SlotDecoder(model), GraphDecoder(model, CudaGraph)
    texts = [decoding.ids(1, 9), decoding.ids(2, 2), decoding.ids(3, 12)]
    for text in texts:
        for decoder in (plain, captured):
            decoder.add(decoder.prefill([text])[0])
    for turn in range(30):  # through three sizes of the buffers
        tokens = torch.tensor([decoding.ids(10 * turn + row, 1) for row in range(plain.occupied)])
        torch.testing.assert_close(captured.extend(tokens), plain.extend(tokens), rtol=1e-4, atol=1e-4)
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
    assert all(isinstance(decoder, GraphDecoder) for decoder in made.runner.decoders)
    assert found == decoding.tokens(Sampler(pair, max_slots=5).generate(prompts, params))
