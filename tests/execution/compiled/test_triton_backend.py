"""Decoder layers in Triton inside whole models: every family, packed prompts, joined weights, bits in any batch.

On a GPU where there is one, else in Triton's interpreter (`tests/kernels/test_interpreter.py`), in float32.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from benchmarks.pairs import Shape, build
from eddecode import ModelPair, Sampler
from eddecode.engine.speculative.drafters import BaseDrafter
from eddecode.engine.speculative.speculator import AdaptiveSpeculator
from eddecode.execution.capture import CudaGraph
from eddecode.execution.compiled.lora import LoraDelta, LoraRows
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.cuda_graph import GraphModelRunner
from eddecode.execution.factory import runner_for, separate_pair_runner
from eddecode.execution.lora_runner import LoraPairRunner
from eddecode.execution.runner import CachedModelRunner
from eddecode.models.loader import require_eager_for_softcap
from eddecode_kernels.joined_triton import join_in_place
from helpers import decoding, reference, tiny
from helpers.interpreter import DEVICE, runs
from helpers.tape import Tape

pytestmark = runs
VOCAB = 40
SHAPE: dict[str, Any] = {
    **{"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 128},
    **{"initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 12}
HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
FAMILIES = {
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**{**SHAPE, "sliding_window": 3}),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "phi3": Phi3Config(**SHAPE, rope_parameters=HALF),
    "gemma": GemmaConfig(**SHAPE),
    "gemma2": Gemma2Config(
        **{**SHAPE, "num_hidden_layers": 2}, sliding_window=3, query_pre_attn_scalar=8, attn_logit_softcapping=5.0,
        final_logit_softcapping=10.0,
    ),
    "gemma3": Gemma3TextConfig(
        **{**SHAPE, "num_hidden_layers": 2}, sliding_window=3, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "olmo2": Olmo2Config(**SHAPE),
    "smollm3": SmolLM3Config(**{**SHAPE, "num_hidden_layers": 2}, no_rope_layers=[1, 0], use_sliding_window=False),
    "granite": GraniteConfig(
        **SHAPE, residual_multiplier=0.5, attention_multiplier=0.3, embedding_multiplier=3.0, logits_scaling=2.0
    ),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen2_moe": Qwen2MoeConfig(**SHAPE, **EXPERTS, shared_expert_intermediate_size=20),
    "qwen3_moe": Qwen3MoeConfig(  # a layer of experts, and a dense one
        **{**SHAPE, **EXPERTS, "num_hidden_layers": 2}, norm_topk_prob=True, mlp_only_layers=[1]
    ),
}  # fmt: skip
ROUTED = ("mixtral", "qwen2_moe", "qwen3_moe")
ONE_CALL = {"llama with biases", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3", *ROUTED}


def model_of(config: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        require_eager_for_softcap(
            model.config
        )  # as a `ModelPair` does: transformers 5.17 chooses sdpa, without caps
        for parameter in model.parameters():  # no bias stays at zero, no norm at one
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False).to(DEVICE)


@cache
def captured_pair() -> Sampler:
    """Two models whose steps are captured; its trial of both takes the interpreter longest."""
    base = model_of(FAMILIES["llama with biases"])
    made = Sampler(ModelPair.from_models(base, tiny.tiny_aligned(base).to(DEVICE)))
    made._runner = separate_pair_runner(made.pair, CudaGraph if DEVICE == "cuda" else Tape)
    return made


@cache
def runner_of(family: str) -> CachedModelRunner:
    return CachedModelRunner(model_of(FAMILIES[family]))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_recognized_and_agrees_with_its_own_forward_pass(family: str) -> None:
    """Prompts of two lengths packed into one row, then a token after each; the window is shorter than the texts."""
    model_runner = runner_of(family).clone_empty()
    model = model_runner.model
    assert model_runner.layers.num_layers == FAMILIES[family].num_hidden_layers
    assert model_runner.layers.all_layers
    assert (model_runner.layers.stack is not None) == (family in ONE_CALL)
    assert not model_runner.dense_mask
    assert model_runner.layers.tile_tokens == 32
    texts = [decoding.ids(1, 5, VOCAB), decoding.ids(2, 2, VOCAB)]
    for prefix in model_runner.prefill([text[:-1] for text in texts]):
        model_runner.add(prefix)
    found = model_runner.forward(torch.tensor([text[-1:] for text in texts]))[:, 0]
    expected = [model(input_ids=torch.tensor([text], device=DEVICE)).logits[0, -1] for text in texts]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama with biases", "qwen2_moe"])
def test_the_same_bits_alone_in_a_batch_and_several_tokens_at_once(family: str) -> None:
    """Also for prompts that were packed with others: what a preempted row reads again gives the same bits."""
    texts = [decoding.ids(seed, length, VOCAB) for seed, length in enumerate((4, 9, 6))]
    model_runner = runner_of(family)
    assert model_runner.layers.all_layers
    together = model_runner.clone_empty()
    for prefix in model_runner.prefill([text[:-2] for text in texts]):
        together.add(prefix)
    at_once = together.forward(torch.tensor([text[-2:] for text in texts]))
    again = model_runner.prefill(texts)
    for text, expected, whole in zip(texts, at_once, again, strict=True):
        alone = model_runner.clone_empty()
        alone.add(model_runner.prefill([text[:-2]])[0])
        singly = [alone.forward(torch.tensor([[token]]))[0, 0] for token in text[-2:]]
        assert torch.equal(torch.stack(singly), expected)
        assert torch.equal(whole.logits, expected[-1])


def test_long_prompts_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = runner_of("llama with biases")
    texts = [decoding.ids(seed, length, VOCAB) for seed, length in enumerate((3, 8, 2))]
    whole = llama.clone_empty().prefill(texts)
    monkeypatch.setattr("eddecode.execution.runner.PACKED_CHUNK", 5)
    for one, other in zip(whole, llama.clone_empty().prefill(texts), strict=True):
        assert torch.equal(one.logits, other.logits)
        for a, b in zip(one.states, other.states, strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])


def test_joined_weights_are_held_once_and_models_that_share_them_still_do() -> None:
    one = model_of(FAMILIES["qwen2"])
    other = model_of(FAMILIES["qwen2"])
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        b.data = a.data  # as `share_identical` leaves equal weights
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    layers = [CompiledModules(model) for model in (one, other)]
    attention, twin = (model.model.layers[0].self_attn for model in (one, other))
    assert (
        attention.q_proj.weight.untyped_storage().data_ptr()
        == attention.v_proj.weight.untyped_storage().data_ptr()
    )
    assert attention.k_proj.weight.data_ptr() == twin.k_proj.weight.data_ptr()
    assert all(torch.equal(before[name], tensor) for name, tensor in one.state_dict().items())
    assert all(each.num_layers for each in layers)
    pieces = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert join_in_place(pieces).data_ptr() == attention.q_proj.weight.data_ptr()  # already joined


def test_experts_are_read_where_the_model_has_them() -> None:
    model_runner = runner_of("qwen2_moe")
    layer = model_runner.model.model.layers[0]
    experts = model_runner.layers.stack.layers[layer].compiled.weights[0].experts
    assert experts.gate_up.data_ptr() == layer.mlp.experts.gate_up_proj.data_ptr()
    assert experts.down.data_ptr() == layer.mlp.experts.down_proj.data_ptr()
    joined = layer.mlp.gate.weight.untyped_storage().data_ptr()
    assert layer.mlp.shared_expert_gate.weight.untyped_storage().data_ptr() == joined


def changed_router(model: Any, kind: str) -> None:
    """Make the router of a mixture of experts one of another kind."""
    mixture = model.model.layers[0].mlp
    if kind == "corrected":
        mixture.gate.register_buffer("e_score_correction_bias", torch.zeros(5, device=DEVICE))
    elif kind == "scaled":
        own = type(mixture.gate).forward

        class Scaled(type(mixture.gate)):  # type: ignore[misc]
            def forward(self, x: torch.Tensor) -> Any:
                logits, weights, chosen = own(self, x)
                return logits, 2.5 * weights, chosen

        mixture.gate.__class__ = Scaled
    else:

        class Sigmoid(type(mixture.gate)):  # type: ignore[misc]
            def forward(self, x: torch.Tensor) -> Any:
                logits = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), self.weight)
                return logits, *logits.sigmoid().topk(3, dim=-1)

        mixture.gate.__class__ = Sigmoid


@pytest.mark.parametrize("kind", ["corrected", "scaled", "sigmoid"])
def test_a_router_of_another_kind_is_left_to_the_model(kind: str) -> None:
    model = model_of(FAMILIES["qwen2_moe"])
    changed_router(model, kind)
    assert CompiledModules(model).num_layers == 0


def test_a_low_rank_change_applies_to_its_rows_only() -> None:
    config = FAMILIES["qwen2_moe"]
    base, merged = model_of(config), model_of(config)
    rows, changes = LoraRows(), {}
    generator = torch.Generator().manual_seed(5)
    for key, module in merged.model.named_modules():
        if isinstance(module, torch.nn.Linear) and not key.endswith(("k_proj", "o_proj")):
            a = (0.2 * torch.randn(3, module.in_features, generator=generator)).to(DEVICE)
            b = (0.2 * torch.randn(module.out_features, 3, generator=generator)).to(DEVICE)
            module.weight.data += b @ a
            changes[f"model.{key}"] = LoraDelta(a, b, rows)
    model_runner = CachedModelRunner(base, layers=CompiledModules(base, changes))
    assert model_runner.layers.num_layers
    text = decoding.ids(1, 5, VOCAB)
    rows.active = slice(1, None, 2)
    for prefix in CachedModelRunner(base).prefill([(1,)] * 2):
        model_runner.add(prefix)
    model_runner.truncate([0] * 2)
    found = model_runner.forward(torch.tensor([text, text]))
    for row, model in enumerate((base, merged)):
        expected = model(input_ids=torch.tensor([text], device=DEVICE)).logits[0]
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)


def test_steps_of_experts_are_captured() -> None:
    """No size in a step depends on which experts the rows go to: rows that go elsewhere replay the same capture."""
    compiled = runner_of("mixtral")
    runner = GraphModelRunner(compiled.model, CudaGraph if DEVICE == "cuda" else Tape, layers=compiled.layers)
    texts = [list(decoding.ids(seed, length, VOCAB)) for seed, length in ((1, 2), (2, 1))]
    runner.add_all(runner.prefill([tuple(text) for text in texts]))
    for added in ((4, 30), (17, 9)):
        for text, token in zip(texts, added, strict=True):
            text.append(token)
        found = runner.forward(torch.tensor(added)[:, None])[:, 0]
        assert len(runner.buffers.steps) == 1
        expected = [
            compiled.model(input_ids=torch.tensor([text], device=DEVICE)).logits[0, -1] for text in texts
        ]
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_a_pair_decodes_the_tokens_of_two_plain_models_in_captured_steps() -> None:
    """Both models, contrast and sampling in one step: on a GPU a graph, in the interpreter a tape."""
    made = captured_pair()
    prompts = [decoding.prompt(i, 2 + 3 * i, 4 - i, VOCAB) for i in range(2)]
    params = [decoding.GREEDY.replace(alpha=alpha, max_new_tokens=4) for alpha in (-1.0, 0.7)]
    assert all(
        isinstance(each, GraphModelRunner) and not each.dense_mask for each in made.runner.model_runners
    )
    found = decoding.tokens(made.generate(prompts, params))
    assert decoding.tokens(made.generate(prompts[1], params[1])) == found[1:]  # alone: the same tokens
    models = [copy.deepcopy(model).cpu() for model in made.pair.models]
    for prompt, param, tokens in zip(prompts, params, found, strict=True):
        assert tokens == reference.generate(models, prompt.ids, param.alpha, 4).ids


def test_drafts_in_a_captured_step_change_no_bit() -> None:
    """Log-probabilities are to the bit those of one token at a time, whether a draft was right or not."""
    prompt = decoding.prompt(1, 2, 3, VOCAB)
    params = decoding.GREEDY.replace(alpha=0.2, max_new_tokens=4, logprobs=True)
    made = Sampler(captured_pair().pair)
    made._runner = captured_pair().runner
    plain = made.generate(prompt, params)[0]
    made.speculator = AdaptiveSpeculator([BaseDrafter()], num_draft_tokens=1)
    found = made.generate(prompt, params)[0]
    assert made.speculator.stats.verified > 0
    assert found.token_ids == plain.token_ids
    assert found.logprobs == plain.logprobs


def test_an_adapter_and_its_base_enter_and_decode_together() -> None:
    """One backbone: both models' rows enter in one launch, and one captured step decodes them."""
    shape = Shape(hidden=16, feed_forward=24, layers=1, heads=2, vocabulary=VOCAB)
    made = build(shape, "float32", "lora", DEVICE)
    pair = made.model_pair()
    pair.aligned.low_rank_factors = dict(made.factors)
    prompts = [decoding.prompt(i, 2 + 3 * i, 4 - i, VOCAB) for i in range(2)]
    params = decoding.GREEDY.replace(alpha=0.7, max_new_tokens=2)
    shared = Sampler(pair)
    shared._runner = runner_for(pair, CudaGraph if DEVICE == "cuda" else Tape)
    assert isinstance(shared.runner, LoraPairRunner)
    assert shared.runner.adds_together
    found = decoding.tokens(shared.generate(prompts, params))
    models = [model.cpu() for model in pair.models]
    for prompt, tokens in zip(prompts, found, strict=True):
        assert tokens == reference.generate(models, prompt.ids, 0.7, 2).ids
    assert decoding.tokens(shared.generate(prompts[1], params)) == found[1:]
