"""Top-k, top-p and min-p filters, and inverse-CDF sampling, with parameters per row.

One uniform per token chooses by the inverse CDF in the order of the ids, so the same uniform gives the same token in
any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eddecode.sampling.contrast import MASKED


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniforms: Tensor
) -> Tensor:
    """Sample one token per row.

    Temperature first, then top-k, then top-p on what top-k kept, then min-p relative to the maximum. Tokens that tie at
    a boundary are all kept, so the result does not depend on a sorting order. The token is the smallest id whose
    cumulative probability exceeds u times the total. Temperature 0 takes the largest logit, the lowest id among equals.

    Args:
        logits: (B, V) contrasted logits; −inf is never sampled.
        temperature, top_p, min_p: (B,) float; top_k: (B,) int64, 0 = off. See `SamplingParams`.
        uniforms: (B,) float64 in [0, 1).

    Returns:
        (B,) int64.
    """
    greedy = temperature <= 0
    z = logits.double() / torch.where(greedy, 1.0, temperature).double()[:, None]
    z = keep_top_k(z, top_k)
    z = keep_top_p(z, top_p)
    z = keep_min_p(z, min_p)
    mass = (z - z.amax(dim=-1, keepdim=True)).exp().cumsum(dim=-1)
    # Rounding can make u·total equal to the total; the result is then the last id with a probability above 0.
    target = torch.minimum(uniforms.to(mass) * mass[:, -1], torch.nextafter(mass[:, -1], mass.new_zeros(())))
    sampled = torch.searchsorted(mass, target[:, None], right=True)[:, 0]
    highest = (logits == logits.amax(dim=-1, keepdim=True)).int().argmax(dim=-1)
    return torch.where(greedy, highest, sampled)


def keep_top_k(z: Tensor, top_k: Tensor) -> Tensor:
    """(B, V) logits with all but the k largest of each row at −inf; ties with the k-th stay; k = 0 keeps all."""
    width = z.shape[-1]
    k = torch.where(top_k <= 0, width, top_k).clamp(max=width)
    if bool((k == width).all()):
        return z
    largest = z.topk(int(k[k < width].max()), dim=-1).values  # (B, k_max), descending
    threshold = largest.gather(-1, (k - 1).clamp(max=largest.shape[-1] - 1)[:, None])
    return z.masked_fill((z < threshold) & (k < width)[:, None], MASKED)


def keep_top_p(z: Tensor, top_p: Tensor) -> Tensor:
    """(B, V) logits with all outside the nucleus at −inf (Holtzman et al., arXiv 1904.09751); 1 keeps all."""
    on = top_p < 1
    if not bool(on.any()):
        return z
    ordered = z.sort(dim=-1, descending=True).values
    before = ordered.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)  # probability of the more likely tokens
    before[:, 0] = 0.0
    nucleus = (before < top_p.to(z)[:, None]).sum(dim=-1, keepdim=True)
    threshold = ordered.gather(-1, nucleus - 1)
    return z.masked_fill((z < threshold) & on[:, None], MASKED)


def keep_min_p(z: Tensor, min_p: Tensor) -> Tensor:
    """(B, V) logits with all below min_p times the largest probability at −inf (Nguyen et al., arXiv 2407.01082)."""
    floor = z.amax(dim=-1, keepdim=True) + min_p.to(z).log()[:, None]  # log 0 = −inf keeps all
    return z.masked_fill(z < floor, MASKED)
