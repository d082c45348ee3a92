"""Directional ablation against a naive projection in float64, on every architecture, and the families it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eddecode.errors import PairError
from eddecode.models.residual_writers import ablated, layers_of, remove_direction, residual_writers, residuals
from eddecode.models.weight_sharing import share_identical
from helpers import tiny
from helpers.decoding import ids

TEXTS = [ids(i, 9) for i in range(3)]
UNIT = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)
TRANSPOSED = ("attn.c_proj.weight", "mlp.c_proj.weight")  # GPT-2 keeps (in, out)
WRITERS = {
    "llama": ("embed_tokens.weight", "o_proj.weight", "down_proj.weight"),
    "qwen2": ("embed_tokens.weight", "o_proj.weight", "down_proj.weight"),
    "mistral": ("embed_tokens.weight", "o_proj.weight", "down_proj.weight"),
    "gpt2": ("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias"),
    "gpt_neox": (
        "embed_in.weight",
        ".dense.weight",
        ".dense.bias",
        "dense_4h_to_h.weight",
        "dense_4h_to_h.bias",
    ),
    "phi": ("embed_tokens.weight", ".dense.weight", ".dense.bias", "fc2.weight", "fc2.bias"),
    "mixtral": ("embed_tokens.weight", "o_proj.weight", "experts.down_proj"),
    "qwen2_moe": ("embed_tokens.weight", "o_proj.weight", "down_proj.weight", "experts.down_proj"),
}


def _naive(name: str, tensor: Tensor) -> Tensor:
    """W − r·rᵀ·W in float64, written out for what each tensor is."""
    own, r = tensor.double(), UNIT.double()
    projector = torch.eye(32, dtype=torch.float64) - torch.outer(r, r)
    if "embed" in name or "wte" in name or "wpe" in name or name.endswith(TRANSPOSED):
        return own @ projector
    return projector @ own  # a matrix, a bias, or a stack of matrices


@pytest.mark.parametrize("arch", list(WRITERS))
def test_every_writer_is_the_naive_projection_and_nothing_else_changes(arch: str) -> None:
    model = tiny.tiny_model(arch, tie_word_embeddings=False)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    remove_direction(model, 3 * UNIT, TEXTS)
    for name, tensor in model.named_parameters():
        is_writer = name.endswith(WRITERS[arch]) and not name.endswith("embed_out.weight")
        expected = _naive(name, before[name]) if is_writer else before[name].double()
        assert torch.allclose(tensor.double(), expected, atol=1e-5), name
    for text in TEXTS:
        assert (residuals(model, text, 9) @ UNIT).abs().max() < 1e-4


def test_a_norm_behind_the_matrix_is_passed_by() -> None:
    """Gemma 2 normalizes what is added: r must be missing after the norm, whose weights are not 1."""
    model = tiny.tiny_model("gemma2")
    for layer in layers_of(model):
        for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
            norm.weight.data = torch.linspace(-0.5, 1.5, 32)
    output = layers_of(model)[0].self_attn.o_proj.weight
    scaled = UNIT.double() * (1 + torch.linspace(-0.5, 1.5, 32).double())
    scaled /= scaled.norm()
    expected = output.double() - torch.outer(scaled, scaled @ output.double())
    remove_direction(model, UNIT, TEXTS)
    assert torch.allclose(layers_of(model)[0].self_attn.o_proj.weight.double(), expected, atol=1e-5)
    for text in TEXTS:
        states = residuals(model, text, 9)
        assert (states @ UNIT).abs().max() < 1e-4 * states.abs().max()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "mixtral", "phi"])
def test_hooks_give_the_model_that_the_weights_give(arch: str) -> None:
    model = tiny.tiny_model(arch)
    own = [model(torch.tensor([text])).logits for text in TEXTS]
    with ablated(model, UNIT):
        hooked = [model(torch.tensor([text])).logits for text in TEXTS]
    assert all(torch.equal(model(torch.tensor([text])).logits, z) for text, z in zip(TEXTS, own, strict=True))
    remove_direction(model, UNIT, TEXTS)
    for text, found, before in zip(TEXTS, hooked, own, strict=True):
        changed = model(torch.tensor([text])).logits
        assert torch.allclose(changed, found, atol=1e-3)
        assert not torch.allclose(changed, before, atol=1e-2)


def test_a_tied_head_keeps_its_weights_and_a_shared_tensor_stays_with_the_other_model() -> None:
    base = tiny.tiny_model("llama", tie_word_embeddings=True)
    aligned = copy.deepcopy(base)
    share_identical([base, aligned])
    before = {name: tensor.clone() for name, tensor in base.named_parameters()}
    remove_direction(aligned, UNIT, TEXTS)
    assert torch.equal(aligned.get_output_embeddings().weight, before["model.embed_tokens.weight"])
    assert (aligned.get_input_embeddings().weight @ UNIT).abs().max() < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.named_parameters())


def test_low_precision_is_rounded_once() -> None:
    model = tiny.tiny_model("llama", dtype=torch.bfloat16)
    before = model.model.layers[1].mlp.down_proj.weight.clone()
    remove_direction(model, UNIT, TEXTS)
    expected = _naive("down_proj", before).to(torch.bfloat16)
    after = model.model.layers[1].mlp.down_proj.weight
    assert after.dtype == torch.bfloat16
    assert torch.allclose(after.float(), expected.float(), rtol=2**-7, atol=1e-6)


class _AlsoWrites(nn.Module):
    """A part of a layer that writes into the residual stream and has no known name."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part

    def forward(self, hidden: Tensor) -> Tensor:
        return self.part(hidden) + 0.5 * UNIT.to(hidden.dtype)


def test_what_cannot_be_changed_is_refused() -> None:
    other = tiny.tiny_model("llama")
    layers_of(other)[1].mlp = _AlsoWrites(layers_of(other)[1].mlp)
    with pytest.raises(PairError, match=r"layer 1 still writes along it .* other matrices that write"):
        remove_direction(other, UNIT, TEXTS)
    unknown = tiny.tiny_model("llama")
    for layer in layers_of(unknown):
        layer.mlp.lower = layer.mlp.__dict__["_modules"].pop("down_proj")
    with pytest.raises(PairError, match=r"layer 0 .* no output matrix of its feed-forward part"):
        residual_writers(unknown, UNIT)
    quantized = tiny.tiny_model("llama")
    quantized.is_quantized = True
    with pytest.raises(PairError, match="quantized"):
        remove_direction(quantized, UNIT, TEXTS)
    offloaded = tiny.tiny_model("llama")
    layers_of(offloaded)[0].mlp.down_proj.to("meta")
    with pytest.raises(PairError, match=r"layers\.0\.mlp\.down_proj are offloaded"):
        remove_direction(offloaded, UNIT, TEXTS)
    two = tiny.tiny_model("llama")
    two.model.others = nn.ModuleList([nn.Identity(), nn.Identity()])
    with pytest.raises(PairError, match="cannot be told"):
        layers_of(two)
