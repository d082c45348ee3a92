"""Two models in step, and the self-check that decides how each is run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPTNeoConfig,
    MambaConfig,
    MptConfig,
    Phi3Config,
    PreTrainedConfig,
)

from eddecode.errors import ContextError, PairError
from eddecode.execution import runner as runner_module
from eddecode.execution.factory import separate_pair_runner
from eddecode.execution.rowwise_runner import RowwiseModelRunner
from eddecode.execution.runner import CachedModelRunner
from eddecode.execution.self_check import max_relative_error
from eddecode.execution.uncached_runner import UncachedModelRunner
from eddecode.models.pair import ModelPair
from eddecode.models.rotary import rope_window
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler
from helpers import decoding, reference, tiny


def pair_of(config: PreTrainedConfig) -> ModelPair:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return ModelPair.from_models(base, tiny.tiny_aligned(base))


def check_against_the_reference(pair: ModelPair, made: Sampler, count: int = 6) -> None:
    prompts = [decoding.prompt(i, 3 + 8 * i, 19 - 6 * i, 90) for i in range(3)]
    params = [decoding.GREEDY.replace(alpha=alpha, max_new_tokens=count) for alpha in (0.0, -1.0, 1.5)]
    expected = [
        reference.generate(pair.models, p.ids, q.alpha, count).ids
        for p, q in zip(prompts, params, strict=True)
    ]
    assert decoding.tokens(made.generate(prompts, params)) == expected


SMALL = {"vocab_size": 97, "initializer_range": 0.3}
OTHERS: dict[str, PreTrainedConfig] = {
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4, **SMALL),  # ALiBi, from a 2-D mask
    "mamba": MambaConfig(hidden_size=32, state_size=8, num_hidden_layers=2, **SMALL),  # a recurrent state
    "gpt_neo": GPTNeoConfig(  # windows of its own
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=64,
        **SMALL,
    ),
}


@pytest.mark.parametrize("kind", list(OTHERS))
def test_models_without_a_usable_cache_are_recomputed_with_a_warning(kind: str) -> None:
    pair = pair_of(OTHERS[kind])
    made = Sampler(pair, max_slots=2)
    with pytest.warns(UserWarning, match=r"the whole text is recomputed for every token") as caught:
        made.runner  # noqa: B018
    assert [f"{name} ({kind})" in str(w.message) for name, w in zip(pair.names, caught, strict=True)] == [
        True
    ] * 2
    assert all(isinstance(model_runner, UncachedModelRunner) for model_runner in made.runner.model_runners)
    check_against_the_reference(pair, made)


def test_alibi_by_position_needs_no_recomputation() -> None:
    """MPT's biases differ from the true distances by a constant of the row, which a softmax does not see."""
    pair = pair_of(MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=64, expansion_ratio=2, **SMALL))
    made = Sampler(pair)
    assert all(isinstance(model_runner, CachedModelRunner) for model_runner in made.runner.model_runners)
    check_against_the_reference(pair, made)


@pytest.mark.parametrize("arch", list(tiny.ARCHITECTURES))
def test_nine_architectures_decode_over_a_cache_without_a_warning(arch: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner = separate_pair_runner(decoding.pair(arch))
    assert all(isinstance(model_runner, CachedModelRunner) for model_runner in runner.model_runners)
    for dense_mask in (False, True):
        assert max_relative_error(CachedModelRunner(decoding.pair(arch).base, dense_mask=dense_mask)) < 1e-4


@pytest.mark.parametrize("fault", ["mask", "positions", "exception"])
def test_a_model_that_ignores_its_mask_or_positions_fails_the_self_check(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, aligned = tiny.tiny_pair_models()
    real = aligned.forward

    def deaf(*args: Any, **kwargs: Any) -> Any:
        if kwargs["use_cache"] and fault == "exception":
            raise ValueError("this model takes no such cache\nsecond line")
        if kwargs["use_cache"] and fault == "mask":
            kwargs["attention_mask"] = None
        if kwargs["use_cache"] and fault == "positions":
            kwargs["position_ids"] = kwargs["position_ids"] * 0
        return real(*args, **kwargs)

    monkeypatch.setattr(aligned, "forward", deaf)
    limit = r"was off by .* of the largest logit, above 0\.0001"
    message, kind = {
        "exception": (
            r"through a key-value cache failed: ValueError: this model takes no such cache; the whole text",
            UncachedModelRunner,
        ),
        "positions": (rf"through a key-value cache {limit}; the whole text", UncachedModelRunner),
        # Without a mask, a model attends to all keys in the cache: right for a row that is run alone.
        "mask": (
            rf"texts of different lengths in one pass {limit}; they are decoded one",
            RowwiseModelRunner,
        ),
    }[fault]
    with pytest.warns(UserWarning, match=rf"aligned \(llama\): decoding {message}"):
        runner = separate_pair_runner(ModelPair.from_models(base, aligned))
    assert [type(model_runner) for model_runner in runner.model_runners] == [CachedModelRunner, kind]


@pytest.mark.parametrize("value", [-1e4, -float("inf")])
def test_one_padded_id_does_not_set_the_scale_of_the_self_check(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does it fail a sound model, nor does its size excuse a broken one."""
    model = tiny.tiny_model("phi")
    model.lm_head.bias.data[290] = value
    assert max_relative_error(CachedModelRunner(model)) < 1e-4
    real = model.forward

    def late(*args: Any, **kwargs: Any) -> Any:
        if kwargs["use_cache"]:
            kwargs["position_ids"] = kwargs["position_ids"] * 2
        return real(*args, **kwargs)

    monkeypatch.setattr(model, "forward", late)
    assert max_relative_error(CachedModelRunner(model)) > 0.01


def test_a_slot_is_the_same_row_in_both_models_or_in_none(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = separate_pair_runner(decoding.pair())
    first = [runner.prefill(model, [decoding.ids(model, 4)])[0] for model in (0, 1)]
    runner.add(first)
    real = CachedModelRunner.add

    def short(self: CachedModelRunner, prefix: Any) -> None:
        if self is runner.model_runners[1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(CachedModelRunner, "add", short)
        with pytest.raises(torch.OutOfMemoryError):
            runner.add(first)
    assert [model_runner.occupied for model_runner in runner.model_runners] == [1, 1]
    runner.remove(0)
    assert [model_runner.occupied for model_runner in runner.model_runners] == [0, 0]


def test_a_pass_that_failed_in_the_second_model_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = separate_pair_runner(decoding.pair())
    texts = [decoding.ids(1, 4), decoding.ids(2, 7)]
    runner.add([runner.prefill(model, [texts[model]])[0] for model in (0, 1)])
    real = CachedModelRunner.forward

    def short(self: CachedModelRunner, tokens: torch.Tensor) -> torch.Tensor:
        if self is runner.model_runners[1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(CachedModelRunner, "forward", short)
        with pytest.raises(torch.OutOfMemoryError):
            runner.forward(torch.tensor([[9]]), [[4], [7]])
    for model, logits in enumerate(runner.forward(torch.tensor([[9]]), [[4], [7]])):
        expected = reference.next_logits(decoding.pair().models[model], [*texts[model], 9])
        torch.testing.assert_close(logits[0, 0].double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_an_empty_clone_shares_the_models_and_no_slot() -> None:
    runner = separate_pair_runner(decoding.pair())
    runner.add([runner.prefill(model, [decoding.ids(model, 4)])[0] for model in (0, 1)])
    other = runner.clone_empty()
    assert [model_runner.occupied for model_runner in other.model_runners] == [0, 0]
    assert [model_runner.occupied for model_runner in runner.model_runners] == [1, 1]
    assert all(a.model is b.model for a, b in zip(runner.model_runners, other.model_runners, strict=True))


def longrope() -> Phi3Config:
    """As Phi-4-mini, with an original window of 24 tokens."""
    return Phi3Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        original_max_position_embeddings=24,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 24,
        },
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **SMALL,
    )


def test_texts_end_where_rotary_frequencies_would_change_with_the_batch() -> None:
    """Phi-3's longrope turns all positions by other angles once the longest row passes the original length."""
    pair = pair_of(longrope())
    assert rope_window(pair.base) == 24
    made = Sampler(pair)
    assert made.runner.windows == [24, 24]
    fits = RenderedPrompt(decoding.ids(0, 14, 90), decoding.ids(1, 5, 90))
    expected = reference.generate(pair.models, fits.ids, 1.0, 10).ids
    assert decoding.tokens(made.generate(fits, decoding.GREEDY.replace(alpha=1.0))) == [expected]
    with pytest.raises(ContextError, match=r"the base model reads at most 24 tokens, but the prompt has 15"):
        made.generate(RenderedPrompt(decoding.ids(0, 15, 90), [3]), decoding.GREEDY)


def test_the_long_window_on_request(tmp_path: Path) -> None:
    """With the angles for long texts throughout, texts beyond the original window are those of the model itself."""
    made = pair_of(longrope())
    folders = [
        tiny.save_model(tmp_path / name, model, tiny.tiny_tokenizer())
        for name, model in zip(made.names, made.models, strict=True)
    ]
    short = ModelPair.load(*folders)
    assert "reads texts of at most 24 of its 256 tokens" in " ".join(map(str, short.notes))
    pair = ModelPair.load(*folders, long_context=True)
    assert pair.digests() != short.digests()
    sampler = Sampler(pair)
    assert sampler.runner.windows == [256, 256]
    prompts = [RenderedPrompt(decoding.ids(i, 40 + i, 90), decoding.ids(i + 3, 60, 90)) for i in range(2)]
    short_one = RenderedPrompt(decoding.ids(7, 5, 90), decoding.ids(8, 6, 90))  # beside it in the batch
    params = decoding.GREEDY.replace(alpha=1.0)
    found = decoding.tokens(sampler.generate([*prompts, short_one], params))
    # The models as they are made from their own configuration: beyond the original window at every step.
    assert found[:2] == [reference.generate(made.models, prompt.ids, 1.0, 10).ids for prompt in prompts]
    assert found[2] == reference.generate(pair.models, short_one.ids, 1.0, 10).ids
    with pytest.raises(PairError, match=r"no model has rotary angles of its own for long texts"):
        ModelPair.load(*tiny.save_pair(tmp_path / "llama"), long_context=True)


def test_models_with_static_rope_have_no_rope_window() -> None:
    assert [rope_window(tiny.tiny_model(arch)) for arch in tiny.ARCHITECTURES] == [None] * 9


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights(where: str, tmp_path: Any) -> None:
    """accelerate brings each layer's weights as it runs, the swapped head's among them."""
    from accelerate import cpu_offload, disk_offload

    base, aligned = tiny.tiny_pair_models()
    prompts, params = decoding.mixed_prompts(4), decoding.GREEDY.replace(alpha=0.7)
    expected = [reference.generate((base, aligned), p.ids, 0.7, 10).ids for p in prompts]
    if where == "cpu":
        cpu_offload(aligned, execution_device=torch.device("cpu"), offload_buffers=True)
    else:
        disk_offload(aligned, str(tmp_path), execution_device=torch.device("cpu"), offload_buffers=True)
    assert aligned.get_input_embeddings().weight.device.type == "meta"
    made = Sampler(ModelPair.from_models(base, aligned))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert all(isinstance(model_runner, CachedModelRunner) for model_runner in made.runner.model_runners)
    assert decoding.tokens(made.generate(prompts, params)) == expected
    assert runner_module.PREFILL_CHUNK > 40
