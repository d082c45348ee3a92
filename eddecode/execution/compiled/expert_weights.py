"""Recognizes a mixture of experts by its parts, and its router by what it gives.

Experts are held as two stacks of matrices, as transformers holds them since version 5; a router is a softmax over one
product and the k largest of it. Whatever groups experts, corrects the choice by a bias or weighs by a sigmoid is not
of this kind. What the experts compute is not looked at here: a trial of the whole layer shows it (`decoder_layer`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eddecode_kernels.decoder_layer import ExpertWeights

_PARTS = {"gate", "experts", "shared_expert", "shared_expert_gate", "act_fn"}
_PROBES = 32  # rows that a router is tried on
_TOLERANCE = {
    torch.float32: 1e-5,
    torch.bfloat16: 0.02,
    torch.float16: 0.005,
}  # of weights, which are below 1


def is_mixture(feed_forward: Any) -> bool:
    """Whether a layer's feed-forward has routed experts."""
    return isinstance(getattr(feed_forward, "experts", None), nn.Module)


def expert_weights(feed_forward: Any) -> ExpertWeights | None:
    """The experts and the kind of their router, or None if it is not a mixture of the known kind."""
    router, experts = getattr(feed_forward, "gate", None), feed_forward.experts
    names = {name for name, _ in feed_forward.named_children()}
    if (
        not isinstance(router, nn.Module)
        or not names <= _PARTS
        or ("shared_expert" in names) != ("shared_expert_gate" in names)
        or next(feed_forward.buffers(), None) is not None
        or getattr(experts, "_is_expert_parallel", False)
    ):
        return None
    held, of_router = dict(experts.named_parameters()), dict(router.named_parameters())
    if set(held) != {"gate_up_proj", "down_proj"} or set(of_router) != {"weight"}:
        return None
    gate_up, down, of_logits = held["gate_up_proj"], held["down_proj"], of_router["weight"]
    if down.dim() != 3 or of_logits.shape != down.shape[:2]:
        return None
    count, width, inner = down.shape
    found = router_kind(router) if gate_up.shape == (count, 2 * inner, width) else None
    return None if found is None else ExpertWeights(gate_up, down, *found)


@torch.inference_mode()
def router_kind(router: Any) -> tuple[int, bool, bool] | None:
    """k, whether a router divides its weights by their sum, and whether it rounds them; None if it is of another kind.

    Args:
        router: gives logits (n, E), weights (n, k) and experts (n, k) for x (n, d); `weight` is (E, d).
    """
    weight: Tensor = router.weight
    if weight.dtype not in _TOLERANCE or weight.device.type == "meta":
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_PROBES, weight.shape[1], generator=generator).to(weight)
    try:
        _, given, chosen = router(x)
        known = given.shape == chosen.shape == (_PROBES, given.shape[1])
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None
    if not known or given.shape[1] > weight.shape[0]:
        return None
    top_k = given.shape[1]
    probabilities = nn.functional.linear(x, weight).softmax(-1, dtype=torch.float32)
    expected = probabilities.topk(top_k, dim=-1).values
    # The chosen experts' own probabilities: where two are equal, either may be chosen.
    found = probabilities.gather(1, chosen.long())
    tolerance = _TOLERANCE[weight.dtype]
    if not torch.allclose(found.sort(descending=True).values, expected, rtol=0, atol=tolerance):
        return None
    for renormalized in (False, True):
        values = found / found.sum(-1, keepdim=True) if renormalized else found
        if torch.allclose(given.float(), values, rtol=0, atol=tolerance):
            return top_k, renormalized, given.dtype == weight.dtype != torch.float32
    return None
