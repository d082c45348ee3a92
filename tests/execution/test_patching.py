"""The head in float32: as exact as its inputs, in any model and with hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from eddecode.execution import patching as module
from eddecode.execution.patching import Float32LMHead
from helpers import tiny


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everywhere(count: int, length: int) -> torch.Tensor:
    return torch.arange(length).expand(count, length)


class OnlyHead:
    """A model that is nothing but its head."""

    def __init__(self, linear: Any) -> None:
        self.linear = linear

    def get_output_embeddings(self) -> Any:
        return self.linear


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [1, 63, 130])
@pytest.mark.parametrize("compiled", [True, False])
def test_low_precision_costs_nothing_but_float32_accumulation(
    dtype: torch.dtype, bias: bool, width: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """|error| ≤ (d + 2)·2⁻²⁴·(Σ|hᵢwᵢ| + |b|): products of low-precision numbers are exact in float32."""
    monkeypatch.setattr(
        module, "is_faster_than_torch", lambda dtype: compiled
    )  # where there is no compiler, torch's product serves
    monkeypatch.setattr(module, "CONVERT_ROWS", 32)  # several blocks, the last one short
    linear = nn.Linear(48, width, bias=bias, dtype=dtype).requires_grad_(False)
    linear.weight.data = rows(width, 48, seed=width).to(dtype)
    hidden = rows(3, 2, 48).to(dtype)
    found = Float32LMHead(OnlyHead(linear)).project(hidden)
    assert found.dtype == torch.float32
    w, h = linear.weight.double(), hidden.double()
    b = linear.bias.double() if bias else torch.zeros(width, dtype=torch.float64)
    exact = h @ w.T + b
    bound = 50 * 2.0**-24 * (h.abs() @ w.abs().T + b.abs())
    assert ((found.double() - exact).abs() <= bound + 1e-30).all()


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2", "phi"])
def test_the_head_is_run_at_the_selected_positions_only(arch: str) -> None:
    """The logits of the places are the model's own there, soft-capping included, and the head is left as it was."""
    model = tiny.tiny_model(arch)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    plain = model(input_ids=ids, use_cache=False).logits
    head, places = Float32LMHead(model), torch.tensor([[1, 3], [0, 2]])
    attributes = dict(vars(head.linear))
    with head.selecting(places):
        inside = model(input_ids=ids, use_cache=False).logits
    found = head.select(inside, places)
    assert found.shape == (2, 2, tiny.VOCAB)
    for row in range(2):
        torch.testing.assert_close(found[row], plain[row, places[row]], rtol=1e-5, atol=1e-5)
    assert vars(head.linear) == attributes
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, plain, rtol=0, atol=0)


def test_operations_of_the_family_on_logits_are_in_float32() -> None:
    """Gemma 2's soft cap on bf16 weights: its logits are not bf16 numbers."""
    model = tiny.tiny_model("gemma2", dtype=torch.bfloat16)
    head, places = Float32LMHead(model), everywhere(1, 3)
    with torch.inference_mode(), head.selecting(places):
        logits = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits
    assert logits.dtype == torch.float32
    assert logits.abs().max() <= 10.0
    assert (logits != logits.bfloat16().float()).float().mean() > 0.9


def test_the_head_is_put_back_after_an_error() -> None:
    model = tiny.tiny_model()
    head = Float32LMHead(model)
    with pytest.raises(RuntimeError, match="midway"), head.selecting(everywhere(1, 1)):
        raise RuntimeError("midway")
    assert "forward" not in vars(head.linear)


def test_a_head_that_is_not_plain_linear_keeps_its_forward() -> None:
    """A quantised or adapted head is called as it is; its logits are gathered and lifted afterwards."""

    class Doubled(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(hidden)

    linear = Doubled(8, 5, bias=False).requires_grad_(False)
    head, hidden, places = (
        Float32LMHead(OnlyHead(linear)),
        rows(2, 3, 8).bfloat16().float(),
        torch.tensor([[2], [0]]),
    )
    assert not head.is_patchable
    with head.selecting(places):
        found = head.select(linear(hidden), places)
    expected = 2 * torch.stack([hidden[0, 2:3], hidden[1, 0:1]]) @ linear.weight.T
    torch.testing.assert_close(found, expected)


def test_hooks_on_the_head_still_run() -> None:
    """accelerate wraps `forward` to bring offloaded weights: the swap goes inside of that."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Count(ModelHook):
        before = after = 0

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            self.before += 1
            return args, kwargs

        def post_forward(self, module: Any, output: Any) -> Any:
            self.after += 1
            return output

    model, hook = tiny.tiny_model(dtype=torch.bfloat16), Count()
    add_hook_to_module(model.lm_head, hook)
    head = Float32LMHead(model)
    with torch.inference_mode(), head.selecting(torch.tensor([[1]])):
        logits = model(input_ids=torch.tensor([[5, 6]]), use_cache=False).logits
    assert logits.dtype == torch.float32
    assert logits.shape == (1, 1, tiny.VOCAB)
    assert (hook.before, hook.after) == (1, 1)
