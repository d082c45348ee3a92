"""The ED distribution: a weighted sum of next-token logits, masked to the ids that are safe to sample.

The normalizers of the log-softmax cancel in the next softmax, so raw logits can be summed (Zhou et al., ACL 2024, arXiv
2402.12343, eq. 6). The sum has any number of terms: a pair has the weights (1+α, −α); an ensemble distributes −α over
its aligned models; a small pair that steers a large base (proxy-tuning, arXiv 2401.08565) has (1, β, −β). This module
is the definition; `eddecode_kernels` computes the same faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eddecode.errors import EngineError

MASKED = float("-inf")  # logit of an id that must not be sampled


def pair_weights(alpha: Tensor | float) -> Tensor:
    """Weights of (base, aligned) for the ED distribution p_base^(1+α) / p_aligned^α.

    Args:
        alpha: any finite value, a float or (B,). 0 is the base model, −1 the aligned one, positive values reverse
            the alignment.

    Returns:
        (2,) or (2, B) float32: 1+α and −α.
    """
    alpha = torch.as_tensor(alpha, dtype=torch.float32)
    return torch.stack([1 + alpha, -alpha])


def widened(logits: Tensor, width: int) -> Tensor:
    """Logits (n, W) as (n, V) or wider: an id that a model does not have is −inf."""
    missing = max(0, width - logits.shape[1])
    return F.pad(logits, (0, missing), value=MASKED) if missing else logits


def weighted_sum(logits: Sequence[Tensor], weights: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Σᵢ wᵢ·zᵢ, and where a term of nonzero weight is −inf: (B, width) float32 and bool.

    Nothing here depends on values, so that a graph can capture it.

    Args:
        logits: N tensors (B, V_i), V_i ≥ width.
        weights: (N,) or (N, B) float32; a term of weight zero has no effect, even at ±inf.
        width: number of ids.
    """
    first = logits[0]
    total = torch.zeros(first.shape[0], width, dtype=torch.float32, device=first.device)
    masked = torch.zeros_like(total, dtype=torch.bool)
    for weight, z in zip(weights.reshape(len(logits), -1, 1), logits, strict=True):
        z = z[:, :width].to(first.device, torch.float32)
        is_off = weight == 0
        masked |= ~is_off & (z == MASKED)
        total += torch.where(is_off, 0.0, weight * z)
    return total, masked


def contrast(
    logits: Sequence[Tensor],
    weights: Tensor | Sequence[float],
    vocabulary: Tensor | None = None,
    plausibility: Tensor | float = 0.0,
) -> Tensor:
    """Contrasted logits Σᵢ wᵢ·zᵢ, float32, with every id that must not be sampled at −inf.

    An id is masked if it lies outside `vocabulary`, if a term of nonzero weight gives it −inf (a negative weight
    would turn that into +inf), or if it fails the adaptive plausibility constraint p₀ ≥ τ·max p₀ on
    the first term (Li et al., ACL 2023, arXiv 2210.15097, eq. 2). A term of weight zero has no
    effect.

    Args:
        logits: N tensors (B, V_i), any float dtype; the first one is the base model's.
        weights: (N, B), or N floats shared by all rows.
        vocabulary: (V,) bool, true where an id may be sampled; None allows all ids below the smallest V_i.
        plausibility: τ in [0, 1], a float or (B,); 0 switches the constraint off.

    Returns:
        (B, V) float32.

    Raises:
        EngineError: the number of weights is not the number of terms, or `vocabulary` is wider than the logits.
    """
    first = logits[0]
    w = torch.as_tensor(weights, dtype=torch.float32, device=first.device)
    if w.shape[0] != len(logits):
        raise EngineError(
            f"contrast was given {len(logits)} logit tensors and {w.shape[0]} weights; expected one weight per tensor"
        )
    width = min(z.shape[-1] for z in logits) if vocabulary is None else vocabulary.shape[0]
    if any(z.shape[-1] < width for z in logits):
        raise EngineError(
            f"the vocabulary has {width} ids but the logits are only {[z.shape[-1] for z in logits]} wide; "
            "cut the vocabulary to the ids that every model knows"
        )
    total, masked = weighted_sum(logits, w, width)
    if vocabulary is not None:
        masked |= ~vocabulary
    tau = torch.as_tensor(plausibility, dtype=torch.float32, device=first.device)[..., None]  # (B, 1) or (1,)
    if bool((tau > 0).any()):
        base = first[:, :width].float().masked_fill(masked, MASKED)
        masked |= (tau > 0) & (base < base.amax(dim=-1, keepdim=True) + tau.log())
    return total.masked_fill(masked, MASKED)
