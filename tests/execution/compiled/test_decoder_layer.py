"""Compiled decoder layers: which are recognized, against plain forward passes, the same bits in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MiniMaxConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from eddecode.execution.compiled.cpu_backend import CpuBackend
from eddecode.execution.compiled.decoder_layer import compile_decoder_layer
from eddecode.execution.compiled.lora import LoraDelta, LoraRows
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.patching import patched_forward
from eddecode.execution.runner import CachedModelRunner
from eddecode.execution.self_check import max_relative_error
from eddecode_kernels.layers_cpu import compiled_linear
from helpers import tiny

pytestmark = pytest.mark.skipif(
    compiled_linear(torch.zeros(1, 1), None, torch.float32) is None,
    reason="no C++ compiler: the library's layers are used",
)
SHAPE: dict[str, Any] = {**tiny._GROUPED, "vocab_size": 97, "initializer_range": 0.2, "pad_token_id": 0}
BLOCKS = {
    "llama": LlamaConfig(**SHAPE),
    "llama, biases": LlamaConfig(**{**SHAPE, "attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": LlamaConfig(**{**SHAPE, "head_dim": 20, "intermediate_size": 50}),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**{**SHAPE, "head_dim": 16}),
    "phi3": Phi3Config(**SHAPE),
    "phi3, half turned": Phi3Config(
        **SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    ),
    "gemma": GemmaConfig(**{**SHAPE, "head_dim": 8}),
    "mistral": tiny.tiny_config("mistral", 97, sliding_window=3),  # shorter than the texts of a trial
    "qwen2, windows in some layers": Qwen2Config(
        **{**SHAPE, "num_hidden_layers": 3}, use_sliding_window=True, sliding_window=3, max_window_layers=1
    ),
    "granite": GraniteConfig(**{**SHAPE, "residual_multiplier": 0.5}),
    "olmo2": Olmo2Config(**SHAPE),
    "gemma2": tiny.tiny_config("gemma2", 97),
    "gemma3": Gemma3TextConfig(**{**SHAPE, "head_dim": 16, "num_hidden_layers": 6}, sliding_window=3),
    "smollm3": SmolLM3Config(**{**SHAPE, "num_hidden_layers": 4}),
}
OTHERS = {
    "gpt2": tiny.tiny_config("gpt2", 97),
    "mixtral": tiny.tiny_config("mixtral", 97),
    "minimax": MiniMaxConfig(**{**SHAPE, "head_dim": 8}, num_local_experts=2, num_experts_per_tok=1),
}


@pytest.fixture(autouse=True)
def _compiled_layers_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eddecode.execution.compiled.replace.is_faster_than_torch", lambda dtype: True)
    monkeypatch.setattr(CpuBackend, "is_faster", lambda self, dtype: True)
    monkeypatch.setattr("eddecode.execution.patching.is_faster_than_torch", lambda dtype: True)


def model_of(config: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # no bias stays at zero, no norm at one
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_decoder_layer_is_recognized_and_agrees_with_the_model(name: str) -> None:
    model_runner = CachedModelRunner(model_of(BLOCKS[name]))
    assert model_runner.layers.num_layers == BLOCKS[name].num_hidden_layers
    assert max_relative_error(model_runner) < 1e-5


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "phi3, half turned", "gemma", "mistral", "olmo2", "gemma3"]
)
def test_in_bfloat16_it_is_as_close_to_float32_as_torch(name: str) -> None:
    exact = model_of(BLOCKS[name])
    rounded = model_of(BLOCKS[name], torch.bfloat16)
    text = torch.tensor([[5, 17, 3, 80, 41, 2, 9, 33, 60, 12]])
    truth = exact(input_ids=text).logits[0]
    library = (rounded(input_ids=text).logits[0].float() - truth).square().mean().sqrt()
    model_runner = CachedModelRunner(rounded)
    assert model_runner.layers.num_layers
    model_runner.add(model_runner.prefill([tuple(text[0, :1].tolist())])[0])
    ours = (model_runner.forward(text[:, 1:])[0] - truth[1:]).square().mean().sqrt()
    assert ours < 1.3 * library  # fewer roundings, but one text is one draw


def whole(model: Any) -> bool:
    return CompiledModules(model).handles_attention


def test_a_body_of_decoder_layers_runs_as_one_call_unless_it_does_more() -> None:
    assert whole(model_of(BLOCKS["llama"]))
    assert whole(model_of(BLOCKS["mistral"]))
    assert whole(model_of(BLOCKS["qwen3"]))
    assert len(set(BLOCKS["qwen2, windows in some layers"].layer_types)) == 2
    assert whole(model_of(BLOCKS["qwen2, windows in some layers"]))
    assert not whole(model_of(BLOCKS["gemma"]))  # scales its embeddings
    hooked = model_of(BLOCKS["llama"])
    hooked.model.layers[1].register_forward_hook(lambda *_: None)
    assert not whole(hooked)


@pytest.mark.parametrize("name", OTHERS)
def test_other_decoder_layers_are_not_replaced(name: str) -> None:
    layers = CompiledModules(model_of(OTHERS[name]))
    assert layers.num_layers == 0


def test_a_layer_with_a_hook_or_a_quantized_part_is_not_replaced() -> None:
    layer = model_of(BLOCKS["llama"]).model.layers[0]
    assert compile_decoder_layer(layer, "", CpuBackend()) is not None
    handle = layer.mlp.up_proj.register_forward_hook(lambda *_: None)
    assert compile_decoder_layer(layer, "", CpuBackend()) is None
    handle.remove()

    class Quantised(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.round())

    layer.mlp.up_proj = Quantised(32, 48, bias=False)
    assert compile_decoder_layer(layer, "", CpuBackend()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "llama, wide heads", "qwen3", "gemma3", "olmo2"])
def test_the_same_bits_alone_in_a_batch_and_several_tokens_at_once(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(97, (length,), generator=generator).tolist() for length in (9, 30, 17, 5, 23)]
    model_runner = CachedModelRunner(model_of(BLOCKS[name], dtype))
    assert model_runner.layers.num_layers
    together = model_runner.clone_empty()
    for text in texts:
        together.add(model_runner.prefill([tuple(text[:-3])])[0])
    pieces = torch.tensor([text[-3:] for text in texts])
    at_once = together.forward(pieces)
    for text, expected in zip(texts, at_once, strict=True):
        alone = model_runner.clone_empty()
        alone.add(model_runner.prefill([tuple(text[:-3])])[0])
        singly = [alone.forward(torch.tensor([[token]]))[0, 0] for token in text[-3:]]
        assert torch.equal(torch.stack(singly), expected)


def test_more_tokens_than_one_chunk_and_rows_that_share_none() -> None:
    model = model_of(BLOCKS["llama"])
    generator = torch.Generator().manual_seed(4)
    long = torch.randint(97, (2, 240), generator=generator)
    long = torch.cat([long, long.flip(1)], dim=1)[:, :256]  # the context window of these models
    model_runner = CachedModelRunner(model)
    found = model_runner.prefill([tuple(row) for row in long.tolist()] + [tuple(long[0, :7].tolist())])
    for prefix, text in zip(found, [long[0], long[1], long[0, :7]], strict=True):
        torch.testing.assert_close(
            prefix.logits, model(input_ids=text[None]).logits[0, -1], atol=2e-4, rtol=0
        )


@pytest.mark.parametrize("name", ["llama", "phi3"])
@pytest.mark.parametrize("changed", [None, slice(None), slice(1, None, 2)])
def test_a_low_rank_change_applies_to_its_rows_only(name: str, changed: slice | None) -> None:
    base, merged = model_of(BLOCKS[name]), model_of(BLOCKS[name])
    rows, changes = LoraRows(), {}
    generator = torch.Generator().manual_seed(5)
    for key, module in merged.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            a = 0.2 * torch.randn(3, module.in_features, generator=generator)
            b = 0.2 * torch.randn(module.out_features, 3, generator=generator)
            module.weight.data += b @ a
            changes[f"model.{key}"] = LoraDelta(a, b, rows)
    model_runner = CachedModelRunner(base, layers=CompiledModules(base, changes))
    assert model_runner.layers.num_layers
    text = torch.tensor([[5, 17, 3, 80, 41, 2]])
    rows.active = changed
    with_change = [False] * 4
    with_change[slice(0, 0) if changed is None else changed] = [True] * len(
        with_change[changed or slice(0, 0)]
    )
    for _ in range(4):
        model_runner.cache.add(CachedModelRunner(base).prefill([(1,)])[0].states)
    model_runner.truncate([0] * 4)
    found = model_runner.forward(text.expand(4, -1))
    for row, mine in enumerate(with_change):
        expected = (merged if mine else base)(input_ids=text).logits[0]
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)


def test_converting_the_model_while_it_decodes_is_an_error() -> None:
    model = model_of(BLOCKS["llama"])
    model_runner = CachedModelRunner(model)
    model_runner.add(model_runner.prefill([(1, 2, 3)])[0])
    model.bfloat16()
    with pytest.raises(ValueError, match="must not be converted while it decodes"):
        model_runner.forward(torch.tensor([[4]]))


def test_without_the_engines_cache_the_models_own_forward_runs() -> None:
    model = model_of(BLOCKS["llama"])
    model_runner = CachedModelRunner(model)
    text = torch.tensor([[1, 2, 3]])
    before = model(input_ids=text).logits
    with patched_forward(
        model_runner.layers.forwards
    ):  # a mask and a cache that are not the engine's: the model's own code runs
        torch.testing.assert_close(model(input_ids=text, use_cache=False).logits, before, atol=1e-6, rtol=0)
    assert all("forward" not in vars(layer) for layer in model.model.layers)
