"""An adapter release on one backbone: the same tokens as two models, and two models where they would differ."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from eddecode import ModelPair, Sampler, SamplingParams
from eddecode.execution.factory import runner_for, separate_pair_runner
from eddecode.execution.kv_cache import BatchedKVCache
from eddecode.execution.lora_runner import LoraPairRunner
from eddecode.execution.runner import PairRunner
from eddecode.models.float32_pass import float32_logits
from helpers import decoding, tiny

peft = pytest.importorskip("peft")

TARGETS = {"gpt_neox": ["query_key_value", "dense"], "gpt2": ["c_attn"]}


def adapted(folder: Path, arch: str = "llama", **options: Any) -> ModelPair:
    """A pair whose aligned side is an adapter with a change that shows."""
    base = tiny.tiny_model(arch)
    base.save_pretrained(folder / "base")
    targets = TARGETS.get(arch, ["q_proj", "v_proj", "down_proj", "fc1"])
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 7, "target_modules": targets, **options})
    model = peft.get_peft_model(copy.deepcopy(base), config)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            tensor.data = 0.2 * torch.randn(tensor.shape, generator=generator)
    model.save_pretrained(folder / "adapter")
    return ModelPair.load(folder / "base", folder / "adapter", dtype="float32")


def two_backbones(pair: ModelPair) -> Sampler:
    sampler = Sampler(pair)
    sampler._runner = separate_pair_runner(pair)
    return sampler


def mixed() -> list[SamplingParams]:
    kinds = [(0.0, 0.0), (-1.0, 0.0), (0.5, 0.0), (1.0, 1.0), (2.0, 1.0), (0.3, 0.0), (0.1, 0.7), (-0.5, 1.0)]
    return [
        SamplingParams(alpha=alpha, temperature=temperature, max_new_tokens=8 + i, seed=i, n=1 + i % 2)
        for i, (alpha, temperature) in enumerate(kinds)
    ]


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt_neox", "phi"])
def test_one_shared_pass_gives_the_tokens_of_two_models(tmp_path: Path, arch: str) -> None:
    pair = adapted(tmp_path, arch)
    prompts = decoding.mixed_prompts(8)
    expected = two_backbones(pair).generate(prompts, mixed())
    for options in ({}, {"max_slots": 3}, {"speculation": "base", "max_slots": 4}):
        sampler = Sampler(pair, **options)  # type: ignore[arg-type]
        assert isinstance(sampler.runner, LoraPairRunner)
        found = sampler.generate(prompts, mixed())
        assert decoding.tokens(found) == decoding.tokens(expected)
        assert [c.implied_reward for c in found] == pytest.approx(
            [c.implied_reward for c in expected], abs=1e-3
        )


def test_one_pass_of_the_backbone_serves_both_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = adapted(tmp_path)
    sampler = Sampler(pair)
    sampler.generate(decoding.prompt(1, 4, 6), SamplingParams(max_new_tokens=2))
    passes: list[int] = []
    opened = BatchedKVCache.prepare_write
    monkeypatch.setattr(
        BatchedKVCache, "prepare_write", lambda self, *a: passes.append(len(self.lengths)) or opened(self, *a)
    )
    sampler.generate(decoding.prompt(1, 4, 6), SamplingParams(max_new_tokens=9, ignore_eos=True, n=3))
    # Each model reads its prompt; then rows of two each, the first one alone until it is known what a token takes.
    assert passes == [1, 1, 2, *[6] * 7, 4]


def test_drafts_are_read_by_both_models_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = adapted(tmp_path)
    params = SamplingParams(alpha=0.3, temperature=0, max_new_tokens=24, ignore_eos=True)
    prompt = decoding.prompt(1, 4, 6)
    expected = two_backbones(pair).generate(prompt, params)
    sampler = Sampler(pair, speculation=tiny.tiny_model(num_hidden_layers=1))
    made = sampler.speculator
    assert made is not None
    made.num_draft_tokens = 2
    sampler.runner  # noqa: B018  # trials are over before anything counts
    passes: list[tuple[int, int]] = []
    opened = BatchedKVCache.prepare_write

    def counted(self: BatchedKVCache, new: int, *slots: Any) -> Any:
        passes.append((len(self.lengths[slots[0]] if slots else self.lengths), new))
        return opened(self, new, *slots)

    monkeypatch.setattr(BatchedKVCache, "prepare_write", counted)
    assert decoding.tokens(sampler.generate(prompt, params)) == decoding.tokens(expected)
    assert (2, 3) in passes  # both rows of the prompt: the last token and two drafted ones
    assert (1, 3) not in passes


def test_the_base_model_is_not_changed(tmp_path: Path) -> None:
    pair = adapted(tmp_path)
    ids = torch.tensor([decoding.ids(3, 12)])
    before = pair.base(ids).logits
    Sampler(pair).generate(decoding.prompt(2, 5, 5), SamplingParams(alpha=1.0, max_new_tokens=6))
    assert torch.equal(pair.base(ids).logits, before)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "lora_only"}]
)
def test_adapters_other_than_plain_lora_are_decoded_as_two_models(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    pair = adapted(tmp_path, "phi" if "bias" in options else "llama", **options)
    if "use_dora" not in options:
        assert pair.factors is None
    assert type(runner_for(pair)) is PairRunner


def test_layers_that_are_not_linear_are_decoded_as_two_models(tmp_path: Path) -> None:
    assert type(runner_for(adapted(tmp_path, "gpt2"))) is PairRunner


def test_factors_that_do_not_give_the_aligned_model_are_refused(tmp_path: Path) -> None:
    pair = adapted(tmp_path)
    name, (a, b) = next(iter((pair.factors or {}).items()))
    pair.aligned.low_rank_factors[name] = (a, 1.3 * b)
    assert type(runner_for(pair)) is PairRunner


def test_a_row_that_was_added_to_one_model_only_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = LoraPairRunner(pair := adapted(tmp_path), pair.factors or {})
    prefixes = [runner.prefill(role, [decoding.ids(role, 4)])[0] for role in (0, 1)]
    runner.add(prefixes)
    with monkeypatch.context() as patch:
        patch.setattr(type(runner.model_runners[1]), "add", _fails_for_the_aligned)
        with pytest.raises(MemoryError):
            runner.add(prefixes)
    assert [model_runner.occupied for model_runner in runner.model_runners] == [1, 1]


def _fails_for_the_aligned(half: Any, prefix: Any) -> None:
    if half.model_index == 1:
        raise MemoryError
    half.backbone.add(prefix)


def test_scores_are_those_of_the_two_models(tmp_path: Path) -> None:
    pair = adapted(tmp_path)
    sampler = Sampler(pair)
    prompt, params = decoding.prompt(4, 5, 7), SamplingParams(alpha=0.5, max_new_tokens=10, seed=1)
    done = sampler.generate(prompt, params)
    assert isinstance(sampler.runner, LoraPairRunner)
    (score,) = sampler.score([prompt], done, [0.5])
    assert (score.base_logprob, score.aligned_logprob) == pytest.approx(
        (done[0].base_logprob, done[0].aligned_logprob), abs=1e-3
    )


# Low dtypes ------------------------------------------------------------------------------------------------------


def adapted_in_bfloat16(folder: Path, targets: list[str]) -> ModelPair:
    """As `adapted`, saved and loaded in bfloat16, and with a smaller change."""
    base = tiny.tiny_model(
        "llama", dtype=torch.bfloat16, hidden_size=64, intermediate_size=96, initializer_range=0.1
    )
    base.save_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    generator = torch.Generator().manual_seed(5)
    for name, tensor in model.named_parameters():
        if "lora_" in name:
            tensor.data.copy_(0.05 * torch.randn(tensor.shape, generator=generator))
    model.save_pretrained(folder / "adapter")
    return ModelPair.load(folder / "base", folder / "adapter", dtype="bfloat16")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head"], ["q_proj", "v_proj", "down_proj"]])
def test_a_change_of_the_head_is_a_part_of_the_shared_pass(tmp_path: Path, targets: list[str]) -> None:
    pair = adapted_in_bfloat16(tmp_path, targets)
    shared = runner_for(pair)
    assert isinstance(shared, LoraPairRunner)
    text = decoding.ids(3, 24)
    found = shared.prefill(1, [tuple(text)])[0].logits
    exact = float32_logits(pair.aligned, [text])[0][-1]
    rounded = separate_pair_runner(pair).prefill(1, [tuple(text)])[0].logits
    error, rounding = ((each - exact).square().mean().sqrt() for each in (found, rounded))
    assert error <= 2 * rounding
    assert (float32_logits(pair.base, [text])[0][-1] - exact).square().mean().sqrt() > 5 * error


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("lost", ["lm_head", "model.layers.1.self_attn.v_proj"])
def test_a_term_that_is_left_out_in_bfloat16_is_found(tmp_path: Path, lost: str) -> None:
    """One of the terms, whose effect is near that of rounding."""
    pair = adapted_in_bfloat16(tmp_path, ["q_proj", "v_proj", "lm_head"])
    assert pair.factors is not None
    factors = {name: pair.factors[name] for name in pair.factors if name != lost}
    assert LoraPairRunner(pair, pair.factors).self_check() is None
    assert "in float32" in str(LoraPairRunner(pair, factors).self_check())
