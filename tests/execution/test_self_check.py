"""The self-check finds what rounding would hide, and takes no rounding for a fault."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Llama4TextConfig, OlmoeConfig

from eddecode.execution.compiled.lora import LoraDelta, LoraRows
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.model_runner_factory import model_runner_for
from eddecode.execution.rowwise_runner import RowwiseModelRunner
from eddecode.execution.runner import CachedModelRunner
from eddecode.execution.self_check import Expectation, Probe, check_runner, check_structure, logits_of
from eddecode.models.float32_pass import float32_logits
from helpers import decoding, tiny

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
EVERY = pytest.mark.parametrize("arch", list(tiny.ARCHITECTURES))


def llama4(**fields: Any) -> Any:
    config = Llama4TextConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        intermediate_size_mlp=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        num_local_experts=2,
        attn_scale=0.5,
        no_rope_layers=[1, 1, 1, 0],
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **{"max_position_embeddings": 512, "attention_chunk_size": 64, **fields},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


# The measure -----------------------------------------------------------------------------------------------------


@EVERY
def test_a_pass_in_float32_is_that_of_a_model_in_float32(arch: str) -> None:
    """To the bit, whatever the model's layers do with dtypes."""
    model = tiny.tiny_model(arch, dtype=torch.bfloat16)
    text = decoding.ids(3, 20)
    (found,) = float32_logits(model, [text])
    exact = model.float()(input_ids=torch.tensor([text]), use_cache=False).logits[0]
    assert torch.equal(found, exact)


@EVERY
@DTYPES
def test_sound_runners_pass_in_low_dtypes(arch: str, dtype: torch.dtype) -> None:
    model = tiny.tiny_model(arch, dtype=dtype)
    expectation = Expectation.of(model)
    assert check_structure(model, CachedModelRunner, expectation) is None
    assert check_runner(CachedModelRunner(model), expectation) is None


def test_the_texts_are_ragged_and_longer_than_a_short_window() -> None:
    probe = Probe.of(tiny.tiny_model("mistral"))
    lengths = [len(text) for text in probe.texts]
    assert len(set(lengths)) == 3
    assert max(lengths) > 4 * tiny.WINDOW
    short = Probe.of(tiny.tiny_model("gpt2", n_positions=16))  # learned positions end there
    assert max(len(text) for text in short.texts) == 16


# Faults that are smaller than a few percent of a large logit -------------------------------------------------------


@DTYPES
def test_a_change_of_the_head_that_is_left_out(dtype: torch.dtype) -> None:
    """Its size is three percent of the logits: a limit relative to the largest logit would let it pass."""
    model = tiny.tiny_model(dtype=dtype, initializer_range=0.05)
    expectation = Expectation.of(model)
    exact = logits_of(CachedModelRunner(model), expectation.probe)
    size = expectation.exact.square().mean().sqrt()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(exact.shape, generator=generator)
    assert expectation.problem(exact) is None
    assert "where rounding explains" in str(expectation.problem(exact + 0.03 * size * noise))
    # The real thing: a change that the merged model has and the runner does not.
    linear = model.lm_head
    change = torch.randn(linear.weight.shape, generator=generator) * 0.05 * linear.weight.float().std()
    linear.weight.data += change.to(dtype)
    merged = Expectation.of(model)
    linear.weight.data -= change.to(dtype)
    assert merged.problem(exact) is not None


def test_a_window_that_is_one_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, where its effect may be no larger than rounding: the same pass is tried in float32."""
    model = tiny.tiny_model("mistral", dtype=torch.bfloat16)
    expectation = Expectation.of(model)
    monkeypatch.setattr(model.config, "sliding_window", tiny.WINDOW + 1)
    assert "of the largest logit" in str(check_structure(model, CachedModelRunner, expectation))


@pytest.mark.parametrize("seed", range(4))
def test_a_near_tie_of_a_router_is_no_fault_of_the_cache(seed: int) -> None:
    config = OlmoeConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        initializer_range=0.1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(model_runner_for(model, "base")) is CachedModelRunner


# Rows that depend on *the* length ----------------------------------------------------------------------------------


@pytest.mark.parametrize("floor_scale", [4, 8192])
def test_a_model_that_asks_for_the_length_decodes_row_by_row(floor_scale: int) -> None:
    """Llama 4 scales queries by position: by that of the longest row. 8,192 is far beyond the texts of the check."""
    model = llama4(floor_scale=floor_scale)
    with pytest.warns(
        UserWarning, match=r"texts of different lengths in one pass .* one after the other instead"
    ):
        runner = model_runner_for(model, "base")
    assert type(runner) is RowwiseModelRunner
    texts = [decoding.ids(i, length) for i, length in enumerate((3, 90, 11))]
    for prefix in runner.prefill([tuple(text) for text in texts]):
        runner.add(prefix)
    more = [decoding.ids(9 + i, 3) for i in range(3)]
    found = torch.cat(
        [runner.forward(torch.tensor(more)[:, :2]), runner.forward(torch.tensor(more)[:, 2:])], dim=1
    )
    for row, (text, new) in enumerate(zip(texts, more, strict=True)):
        exact = model(input_ids=torch.tensor([[*text, *new]]), use_cache=False).logits[0, -3:]
        torch.testing.assert_close(found[row], exact, rtol=1e-4, atol=1e-4)


def test_without_that_scaling_all_rows_run_together() -> None:
    assert type(model_runner_for(llama4(attn_temperature_tuning=False), "base")) is CachedModelRunner


# A low-rank change of the head ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_has_its_low_rank_change_in_the_rows_that_are_meant(dtype: torch.dtype) -> None:
    model = tiny.tiny_model(dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((4, 32), (300, 4)))
    rows = LoraRows()
    runner = CachedModelRunner(model, layers=CompiledModules(model, {"lm_head": LoraDelta(a, b, rows)}))
    texts = [tuple(decoding.ids(i, 6)) for i in range(4)]
    plain = [prefix.logits for prefix in runner.prefill(texts)]
    rows.active = slice(1, None, 2)
    changed = [prefix.logits for prefix in runner.prefill(texts)]
    for row, text in enumerate(texts):
        states = model.model(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0, -1].float()
        term = b.float() @ (a.float() @ states) if row % 2 else torch.zeros(300)
        torch.testing.assert_close(
            changed[row] - plain[row], term, rtol=1e-2, atol=2e-2 * float(term.abs().max())
        )


def test_without_memory_for_a_pass_in_float32_the_trial_is_one_in_the_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One converted weight may be large: all experts of a layer."""

    def full() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("eddecode.execution.self_check.Float32Pass", full)
    model = tiny.tiny_model(dtype=torch.bfloat16)
    expectation = Expectation.of(model)
    assert expectation.tolerance == 0.06
    assert type(model_runner_for(model, "base")) is CachedModelRunner
    logits = logits_of(CachedModelRunner(model), expectation.probe)
    assert "above 0.06" in str(expectation.problem(logits + 0.2 * logits.abs().max()))
