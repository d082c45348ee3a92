"""Single operations of a model in Triton: RMSNorm, and the head's product in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eddecode_kernels import layers_triton as kernels


def compiled_rms_norm(
    weight: Tensor, epsilon: float, weight_offset_one: bool, rounds_last: bool
) -> Callable[[Tensor], Tensor] | None:
    """RMSNorm, whose result does not depend on the number of rows as torch's does, or None where Triton does not run.

    Args:
        weight: (d,) contiguous.
        epsilon: added to the mean square.
        weight_offset_one: multiply by 1 + weight.
        rounds_last: multiply by the weight before rounding, not after.

    Returns:
        A function from (…, d) of the weight's dtype to the same.
    """
    if not kernels.available(weight.device, weight.dtype) or weight.dim() != 1 or not weight.is_contiguous():
        return None

    def rms_norm(x: Tensor) -> Tensor:
        rows = x.contiguous().view(-1, weight.shape[0])
        out = torch.empty_like(rows)
        torch.ops.eddecode.add_and_norm(
            rows, None, None, None, weight, out, epsilon, 1.0, weight_offset_one, rounds_last
        )
        return out.view(x.shape)

    return rms_norm


def float32_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (M, K) · weightᵀ (N, K) in float32, (M, N): one part, so that nothing is left to add up."""
    return kernels.product(x, weight, split=1)[0]
