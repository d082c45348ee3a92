"""The low-rank factors of a LoRA adapter, taken from PEFT before it is merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class UnmergedLogits:
    """What PEFT's own unmerged forward pass gives in float32: the measure of any other form of an adapter.

    Attributes:
        texts: token ids.
        logits: per text (T, V) float32.
        moved: how far the adapter moves them, as root mean square.
    """

    texts: list[list[int]]
    logits: list[Tensor]
    moved: float


Factors = Mapping[str, tuple[Tensor, Tensor]]  # layer → A (r, in), B (out, r) with aligned = base + B·A


def low_rank_factors(wrapped: Any) -> dict[str, tuple[Tensor, Tensor]] | None:
    """The factors of a PEFT model that is a plain LoRA on linear layers; None for any other adapter.

    Args:
        wrapped: a `PeftModel`, before it is merged.

    Returns:
        layer → A (r, in), B (out, r), in the layer's dtype, with the scaling in B; layers named as in the base model.
    """
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.tuners_utils import BaseTunerLayer

    factors = {}
    for name, module in wrapped.base_model.model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if not isinstance(module, LoraLinear) or len(module.active_adapters) != 1 or module.fan_in_fan_out:
            return None
        adapter = module.active_adapters[0]
        if module.lora_variant or module.lora_bias.get(adapter):  # DoRA and the like: not W + B·A
            return None
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        dtype = module.get_base_layer().weight.dtype
        scaled = (b.detach().double() * module.scaling[adapter]).to(dtype)
        factors[name] = (a.detach().to(dtype).clone(), scaled.contiguous())
    config = wrapped.peft_config[wrapped.active_adapter]
    has_more = getattr(config, "bias", "none") != "none" or any(
        getattr(config, name, None) for name in ("modules_to_save", "trainable_token_indices")
    )
    return None if has_more else factors


def logit_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Root mean square of the differences of two lists of logits; constants per position do not count."""
    total, count = 0.0, 0
    for x, y in zip(a, b, strict=True):
        difference = (x.double() - y.double().to(x.device))[:, : min(x.shape[1], y.shape[1])]
        difference = difference - difference.mean(dim=-1, keepdim=True)
        total += float(difference.square().sum())
        count += difference.numel()
    return float((total / max(count, 1)) ** 0.5)
