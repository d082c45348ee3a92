"""The feed-forward of a decoder layer on a GPU: one gated feed-forward, or a mixture of experts.

Dense: product of gate and up → gate → product. A mixture: product of the router → its experts and weights → pairs put
together by expert → product of gate and up → gate → product → weighted sum, which adds the shared expert's. The
experts' weights are read where the model has them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eddecode_kernels import experts_triton
from eddecode_kernels.decoder_layer import DecoderLayerWeights
from eddecode_kernels.joined_triton import joined


class DenseFeedForward:
    """down(activation(gate(x)) · up(x)).

    Args:
        weights: of a layer, with "gate", "up" and "down".
    """

    def __init__(self, weights: DecoderLayerWeights) -> None:
        linears = weights.linears
        self._gate_up = joined([linears["gate"], linears["up"]])
        self._down = joined([linears["down"]])
        self._gelu = weights.activation == "gelu_tanh"

    def __call__(self, x: Tensor, tokens: int, lora_rows: slice | None) -> tuple[Tensor, Tensor | None]:
        """The parts (SPLIT, M, d) float32 for x (M, d), and the bias that the next kernel adds.

        Args:
            x: normalized.
            tokens: of each row of the batch.
            lora_rows: see `ForwardContext`.
        """
        parts = self._gate_up(x, tokens, lora_rows)
        gated = x.new_empty(x.shape[0], parts.shape[2] // 2)
        torch.ops.eddecode.gate(parts, self._gate_up.bias, gated, self._gelu)
        return self._down(gated, tokens, lora_rows), self._down.bias


class RoutedFeedForward:
    """Σ weight · expert(x) over the experts that the router gives a token, and the shared expert's where there is one.

    Args:
        weights: of a layer with `experts`.

    Raises:
        ValueError: it has none.
    """

    def __init__(self, weights: DecoderLayerWeights) -> None:
        if weights.experts is None:
            raise ValueError("the layer has no experts")
        self._experts, self._gelu = weights.experts, weights.activation == "gelu_tanh"
        self._shared = DenseFeedForward(weights) if "shared_gate" in weights.linears else None
        names = ("router",) if self._shared is None else ("router", "shared_gate")
        self._router = joined([weights.linears[name] for name in names])

    def __call__(self, x: Tensor, tokens: int, lora_rows: slice | None) -> tuple[Tensor, None]:
        """See `DenseFeedForward.__call__`."""
        experts, ops = self._experts, torch.ops.eddecode
        rows, count, top_k = x.shape[0], experts.gate_up.shape[0], experts.top_k
        parts = self._router(x, tokens, lora_rows)
        chosen = torch.empty(rows, top_k, dtype=torch.int32, device=x.device)
        weights = torch.empty(rows, top_k, dtype=torch.float32, device=x.device)
        gates = None if self._shared is None else weights.new_empty(rows)
        ops.route(
            parts, self._router.bias, x, chosen, weights, gates, count, experts.renormalized, experts.rounded
        )
        group = experts_triton.grouped(chosen, experts.gate_up)
        parts = experts_triton.expert_product(x, experts.gate_up, group, top_k, shared_by=top_k)
        gated = x.new_empty(group.pairs, experts.down.shape[2])
        ops.gate(parts, None, gated, self._gelu)
        parts = experts_triton.expert_product(gated, experts.down, group, top_k, shared_by=1)
        shared, bias = (None, None) if self._shared is None else self._shared(x, tokens, lora_rows)
        mixed = parts.new_empty(1, *x.shape)
        ops.mix_experts(parts, weights, shared, bias, gates, x, experts.rounded, mixed[0])
        return mixed, None


FeedForward = DenseFeedForward | RoutedFeedForward


def feed_forward(weights: DecoderLayerWeights) -> FeedForward:
    """The feed-forward of a layer."""
    return DenseFeedForward(weights) if weights.experts is None else RoutedFeedForward(weights)
