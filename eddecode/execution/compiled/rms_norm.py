"""Compiled forms of a model's RMSNorm layers, which are recognized by what they give and not by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eddecode_kernels import norm_triton
from eddecode_kernels.layers_cpu import compiled_rms_norm


@torch.no_grad()
def compile_rms_norm(module: Any) -> Callable[[Tensor], Tensor] | None:
    """The compiled form of a normalization layer, if one of the known forms gives what the layer gives."""
    if not type(module).__name__.endswith("RMSNorm"):
        return None
    weight = getattr(module, "weight", None)
    epsilon = norm_epsilon(module)
    if not isinstance(weight, Tensor) or epsilon is None or weight.dim() != 1:
        return None
    x = torch.linspace(-2, 3, 2 * weight.shape[0]).reshape(1, 2, -1).to(weight)
    for weight_offset_one in (False, True):
        late = rounds_last(module, weight_offset_one)
        norm = norm_triton.compiled_rms_norm(weight, epsilon, weight_offset_one, late) or compiled_rms_norm(
            weight, epsilon, weight_offset_one=weight_offset_one
        )
        if norm is None:
            return None
        expected = module(x)
        if expected.dtype == x.dtype and torch.allclose(
            norm(x), expected, rtol=4 * torch.finfo(x.dtype).eps, atol=1e-6
        ):
            return norm
    return None


def norm_epsilon(norm: Any) -> float | None:
    """What a normalization layer adds to the mean square; families have two names for it."""
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return epsilon if isinstance(epsilon, float) else None


@torch.no_grad()
def rounds_last(norm: Any, weight_offset_one: bool) -> bool:
    """Whether a norm in low precision multiplies by its weight before it rounds (Gemma, OLMo 2), not after (Llama)."""
    weight, epsilon = norm.weight, norm_epsilon(norm)
    if weight.dtype == torch.float32 or epsilon is None:
        return weight_offset_one
    x = torch.linspace(-2, 3, weight.shape[-1], device=weight.device).to(weight.dtype)
    try:
        found = norm(x[None])[0]
    except (RuntimeError, ValueError, TypeError):
        return weight_offset_one
    normal = x.float() * torch.rsqrt(x.float().pow(2).mean() + epsilon)
    factor = weight.float() + weight_offset_one
    late = (normal * factor).to(x.dtype)
    early = (normal.to(x.dtype).float() * factor).to(x.dtype)
    return bool((late != found).sum() < (early != found).sum())
