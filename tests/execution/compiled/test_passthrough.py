"""A pass that runs body and head by themselves, and rotary angles by position: only where the model does no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaConfig

from eddecode.execution.compiled.passthrough import is_body_and_head
from eddecode.execution.compiled.replace import CompiledLayers
from eddecode.execution.compiled.rotary import STEP, RotaryTable
from eddecode.execution.model_runner import CachedModelRunner
from eddecode_kernels.linear import linear_for
from helpers import tiny

SHAPE: dict[str, Any] = {**tiny._GROUPED, "vocab_size": 97}
TEXT = (5, 17, 3, 80, 41)


needs_compiler = pytest.mark.skipif(
    linear_for(torch.zeros(1, 1), None, torch.float32) is None,
    reason="no C++ compiler: no body is run as one call",
)


@pytest.fixture(autouse=True)
def _compiled_layers_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eddecode.execution.compiled.replace.pays", lambda dtype: True)
    monkeypatch.setattr("eddecode.execution.lm_head.pays", lambda dtype: True)


def model_of(config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(**SHAPE), True),
        (tiny.tiny_config("qwen2", 97), True),
        (tiny.tiny_config("gemma2", 97), False),  # caps its logits
        (GraniteConfig(**SHAPE, logits_scaling=2.0), False),
        (CohereConfig(**SHAPE, logit_scale=0.5), False),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_a_model_that_does_something_to_its_logits_is_more_than_body_and_head(
    config: Any, expected: bool
) -> None:
    model = model_of(config)
    assert is_body_and_head(model) is expected
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_change_in_place_is_seen_too() -> None:
    model = model_of(LlamaConfig(**SHAPE))
    own = type(model).forward

    class Halved(type(model)):  # type: ignore[misc]
        def forward(self, **inputs: Any) -> Any:
            result = own(self, **inputs)
            result.logits.mul_(0.5)
            return result

    model.__class__ = Halved
    assert not is_body_and_head(model)


@needs_compiler
@pytest.mark.parametrize("where", ["model", "body", "head", "norm"])
def test_a_hook_is_honoured_whenever_it_comes(where: str) -> None:
    model = model_of(LlamaConfig(**SHAPE))
    modules = {"model": model, "body": model.model, "head": model.lm_head, "norm": model.model.norm}
    module = modules[where]
    decoder = CachedModelRunner(model)
    assert decoder.layers.straight is not None
    plain = decoder.prefill([TEXT])[0].logits
    calls: list[Any] = []
    handle = module.register_forward_hook(lambda *args: calls.append(args))
    assert (decoder.layers.straight is None) == (where != "norm")
    torch.testing.assert_close(decoder.prefill([TEXT])[0].logits, plain, atol=1e-6, rtol=0)
    assert len(calls) == 1
    assert CompiledLayers(model).straight is None
    handle.remove()
    assert decoder.layers.straight is not None


class Louder(torch.nn.Linear):
    """A head with a forward pass of its own, which its weight says nothing of."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.01


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_with_a_forward_pass_of_its_own_is_run(dtype: torch.dtype) -> None:
    model = model_of(LlamaConfig(**SHAPE)).to(dtype)
    plain = CachedModelRunner(model).prefill([TEXT])[0].logits
    model.lm_head.__class__ = Louder
    louder = CachedModelRunner(model).prefill([TEXT])[0].logits
    ratio = (louder * plain).sum() / plain.square().sum()  # 97 roundings of at most 2^-8 each, of either sign
    assert ratio == pytest.approx(1.01, abs=0.002)


@needs_compiler
def test_a_text_that_outgrows_the_table_of_angles() -> None:
    model = model_of(LlamaConfig(**{**SHAPE, "max_position_embeddings": 2 * STEP}))
    text = torch.randint(97, (STEP + 20,), generator=torch.Generator().manual_seed(1))
    decoder = CachedModelRunner(model)
    decoder.add(decoder.prefill([tuple(text[: STEP - 2].tolist())])[0])
    found = decoder.forward(text[None, STEP - 2 :])[0]
    torch.testing.assert_close(found, model(input_ids=text[None]).logits[0, STEP - 2 :], atol=1e-4, rtol=0)


ROPES: dict[str, Any] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ROPES)
def test_angles_that_are_looked_up_are_those_that_the_model_works_out(kind: str, dtype: torch.dtype) -> None:
    module = model_of(LlamaConfig(**SHAPE, rope_parameters=ROPES[kind])).model.rotary_emb
    angles, hidden = RotaryTable(module), torch.zeros(2, 3, 4, dtype=dtype)
    assert angles.by_position
    for positions in (torch.tensor([[0, 1, 2], [9, 10, 11]]), torch.tensor([[STEP], [7]])):  # the table grows
        expected = module(hidden, position_ids=positions)
        found = angles(hidden, positions, int(positions.max()) + 1)
        for table, own in zip(found, expected, strict=True):
            torch.testing.assert_close(table[positions], own, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_angles_that_depend_on_more_than_the_position_are_worked_out(kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        half = SHAPE["hidden_size"] // SHAPE["num_attention_heads"] // 2
        rope |= {"short_factor": [1.0] * half, "long_factor": [2.0] * half}
        rope["original_max_position_embeddings"] = 64
    module = model_of(LlamaConfig(**SHAPE, rope_parameters=rope)).model.rotary_emb
    positions = torch.tensor([[4, 5], [1, 2]])
    hidden = torch.zeros(2, 2, 4)
    angles = RotaryTable(module)
    assert not angles.by_position
    found: tuple[Tensor, Tensor] = angles(hidden, positions, 6)
    for each, own in zip(found, module(hidden, position_ids=positions), strict=True):
        assert each.shape[:2] == positions.shape
        torch.testing.assert_close(each, own, atol=0, rtol=0)
