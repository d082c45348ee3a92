"""Compiled operations: against float64, the same bits in any batch, and in place only within the block."""

from __future__ import annotations

import itertools

import pytest
import torch

from eddecode import ModelPair, Sampler, SamplingParams
from eddecode.execution.compiled.lora import LoraDelta, LoraRows
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.patching import patched_forward
from eddecode_kernels import decoder_cpu, layers_cpu
from eddecode_kernels.layers_cpu import compiled_linear, compiled_rms_norm, compiled_silu
from eddecode_kernels.types import UnavailableError
from helpers import decoding, tiny

needs_compiler = pytest.mark.skipif(
    compiled_linear(torch.zeros(1, 1), None, torch.float32) is None,
    reason="no C++ compiler: the library's product is used",
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_compiler
def test_infinities_and_nan_come_through() -> None:
    weight = torch.eye(20, dtype=torch.bfloat16)
    x = torch.zeros(1, 20, dtype=torch.bfloat16)
    x[0, 3] = float("nan")
    for out in (torch.float32, torch.bfloat16):
        linear = compiled_linear(weight, None, out)
        assert linear is not None
        assert linear(x).isnan().all()  # 0 · NaN is in every sum
    x[0, 3] = float("inf")
    linear = compiled_linear(weight, None, torch.bfloat16)
    assert linear is not None
    assert linear(x)[0, 3] == float("inf")


@needs_compiler
def test_converting_the_model_while_it_decodes_is_an_error() -> None:
    layer = torch.nn.Linear(8, 8).requires_grad_(False)
    linear = compiled_linear(layer.weight, layer.bias, torch.float32)
    assert linear is not None
    with pytest.raises(ValueError, match=r"x is \(1, 8\) torch\.bfloat16 .* a model must not be converted"):
        linear(torch.zeros(1, 8, dtype=torch.bfloat16))
    layer.bfloat16()
    with pytest.raises(ValueError, match=r"the weights are now torch\.bfloat16"):
        linear(torch.zeros(1, 8))


def test_modules_are_replaced_only_within_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eddecode.execution.compiled.replace.is_faster_than_torch", lambda dtype: True)
    model = tiny.tiny_model("llama")
    layer = model.model.layers[0].mlp.up_proj
    layers = CompiledModules(model, whole_layers=False)
    with patched_forward(layers.forwards):
        assert ("forward" in vars(layer)) == (len(layers) > 0)
    assert "forward" not in vars(layer)
    with pytest.raises(KeyError), patched_forward(layers.forwards):
        raise KeyError
    assert "forward" not in vars(layer)


def test_a_lora_delta_applies_to_its_rows_only() -> None:
    rows, weight = LoraRows(), random(10, 6)
    a, b = random(2, 6, seed=1), random(10, 2, seed=2)
    changed = LoraDelta(a, b, rows).wrap(lambda x: x @ weight.T)
    x = random(4, 3, 6, seed=3)
    for which, expected in (
        (None, [False] * 4),
        (slice(None), [True] * 4),
        (slice(1, None, 2), [False, True, False, True]),
    ):
        rows.active = which
        for row, with_change in enumerate(expected):
            w = weight + b @ a if with_change else weight
            torch.testing.assert_close(changed(x)[row], x[row] @ w.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "mistral", "qwen2_moe"])
def test_without_a_compiler_the_tokens_are_the_same(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = decoding.mixed_prompts(6)
    params = [SamplingParams(alpha=a, max_new_tokens=12, seed=3) for a in (-1, 0, 0.3, 1, 2, 0.5)]
    models = tiny.tiny_pair_models(arch)
    expected = Sampler(ModelPair.from_models(*models)).generate(prompts, params)

    def none(*symbol: object) -> None:
        raise UnavailableError("no C++ compiler")

    for module in (layers_cpu, decoder_cpu):
        monkeypatch.setattr(module, "function", none)
    monkeypatch.setenv("EDDECODE_KERNELS", "reference")
    sampler = Sampler(ModelPair.from_models(*models))
    assert [model_runner.dense_mask for model_runner in sampler.runner.model_runners] == [True, True]  # type: ignore[attr-defined]
    assert decoding.tokens(sampler.generate(prompts, params)) == decoding.tokens(expected)


@needs_compiler
def test_unsupported_dtypes_and_layouts_are_left_to_torch() -> None:
    for weight, dtype in itertools.product(
        (torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 8)[:, ::2]), (torch.float32, torch.float64)
    ):
        assert compiled_linear(weight, None, dtype) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_offset_one", [False, True])
@needs_compiler
def test_rms_norm_against_its_formula(dtype: torch.dtype, weight_offset_one: bool) -> None:
    weight, x = random(37).to(dtype), random(5, 3, 37, seed=1).to(dtype)
    norm = compiled_rms_norm(weight, 1e-5, weight_offset_one=weight_offset_one)
    if norm is None and dtype == torch.float16:
        pytest.skip("this processor does not convert float16")
    assert norm is not None
    normal = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = normal * (weight.double() + weight_offset_one)
    torch.testing.assert_close(norm(x).double(), expected, rtol=3 * torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(norm(x)[2:3], norm(x[2:3]))


@needs_compiler
def test_silu_against_its_formula_and_with_the_same_bits_anywhere() -> None:
    silu = compiled_silu(torch.float32)
    assert silu is not None
    x = torch.cat([torch.linspace(-120, 120, 1001), torch.tensor([0.0, -0.0, torch.inf, -1e-30])])
    expected = x.double() * x.double().sigmoid()
    torch.testing.assert_close(silu(x).double(), expected, rtol=1e-6, atol=1e-30)
    for start in range(20):
        assert torch.equal(silu(x[start:-3]), silu(x)[start:-3])
    assert silu(torch.tensor([torch.nan])).isnan().all()


@needs_compiler
@pytest.mark.parametrize("arch", ["llama", "gemma2", "qwen2"])
def test_norms_of_a_known_form_are_replaced(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eddecode.execution.compiled.replace.is_faster_than_torch", lambda dtype: True)
    model = tiny.tiny_model(arch)
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    with patched_forward(CompiledModules(model, whole_layers=False).forwards):
        assert norms
        assert all("forward" in vars(norm) for norm in norms)
    norms[0].variance_epsilon = norms[0].eps = "no number"
    with patched_forward(CompiledModules(model).forwards):
        assert "forward" not in vars(norms[0])  # not of a form that is known: left as it is
