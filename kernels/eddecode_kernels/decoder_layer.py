"""What a compiled decoder layer is given, whichever backend runs it: its weights, the pass in progress, the caches.

A decoder layer here is a pre-norm one as in Llama: normalize, attend over rotated queries and keys, add; normalize,
gated feed-forward, add. The feed-forward may be a mixture of experts. These records hold tensors only. `decoder_cpu`
runs such layers in C++, `decoder_triton` in Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LINEARS = ("query", "key", "value", "output", "gate", "up", "down")
ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True)
class LinearWeights:
    """A linear layer x·Wᵀ + bias, and the low-rank term x·Aᵀ·Bᵀ that some rows add to it (LoRA, arXiv 2106.09685).

    Attributes:
        weight: (N, K).
        bias: (N,) or None.
        lora_a, lora_b: (r, K) and (N, r), or None; a scaling factor is part of `lora_b`.
    """

    weight: Tensor
    bias: Tensor | None = None
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None


@dataclass(frozen=True)
class ExpertWeights:
    """A mixture of E gated feed-forwards, of which every token takes the k that its router finds most probable.

    The router is a softmax over E products, in float32 (Mixtral, arXiv 2401.04088, §2.1).

    Attributes:
        gate_up: (E, 2·F, d), the gate's F rows first.
        down: (E, d, F).
        top_k: k.
        renormalized: whether a token's k weights are divided by their sum.
        rounded: whether they are rounded to the dtype of the weights, else they stay in float32.
    """

    gate_up: Tensor
    down: Tensor
    top_k: int
    renormalized: bool
    rounded: bool


@dataclass(frozen=True)
class DecoderLayerWeights:
    """Everything that one decoder layer consists of. All tensors are of one dtype, on one device, and contiguous.

    Attributes:
        linears: by the names in LINEARS; with `experts` also "router" (E, d), and "gate", "up", "down" and
            "shared_gate" (1, d) only where there is a shared expert, which every token adds, times the sigmoid of its
            gate.
        input_norm, post_attention_norm: (d,) weights of the RMSNorms before attention and before the feed-forward; None
            where there is none (OLMo 2, arXiv 2501.00656, §2.1).
        query_norm, key_norm: (head_dim,) weights of RMSNorms of every head, or of all heads together, or None.
        norm_epsilon: added to the mean square in all norms.
        weight_offset_one: norms multiply by 1 + weight, as Gemma's do.
        activation: of the gate, one of ACTIVATIONS.
        num_heads, num_kv_heads, head_dim: of attention.
        attention_scale: factor of the scores before the softmax.
        attention_softcap: c in c·tanh(score/c) (Gemma 2, arXiv 2408.00118, §2); 0 is none.
        attention_out_norm, feed_forward_out_norm: (d,) weights of RMSNorms of what is added to the residual, or None.
        residual_scale: factor of what is added to the residual (Granite).
        norm_rounds_last: norms multiply by the weight before they round (Gemma, OLMo 2), not after.
        rotary: whether queries and keys are rotated (not in every layer of SmolLM3).
        experts: of a feed-forward that is a mixture of them; else None.
    """

    linears: dict[str, LinearWeights]
    input_norm: Tensor | None
    post_attention_norm: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    norm_epsilon: float
    weight_offset_one: bool
    activation: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attention_scale: float
    attention_softcap: float = 0.0
    attention_out_norm: Tensor | None = None
    feed_forward_out_norm: Tensor | None = None
    residual_scale: float = 1.0
    norm_rounds_last: bool = False
    rotary: bool = True
    experts: ExpertWeights | None = None

    @property
    def shape(self) -> DecoderLayerShape:
        """What layers must have in common to run as one call."""
        output = self.linears["output"].weight
        return DecoderLayerShape(output.shape[0], self.num_kv_heads, self.head_dim, output.dtype)


@dataclass(frozen=True)
class DecoderLayerShape:
    """The sizes that a decoder layer shows to the outside, and its dtype."""

    hidden_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class ForwardContext:
    """What all layers of one forward pass have in common.

    Attributes:
        cos, sin: (B, T, R) of the layers' dtype or float32, R ≤ head_dim: the rotary angles of every token. The first
            half of the R numbers is paired with the second (Llama's layout of RoPE, arXiv 2104.09864).
        positions: (B, T) int64, where keys and values are written.
        key_start, key_end: (B, T) int64; a query sees the keys key_start ≤ position < key_end.
        lora_rows: which rows of the batch add the low-rank terms; None is none.
        capacity: no `key_end` is above it; 0 is not known.
        tiles: where one row holds several texts (B = 1): (n, 3) int64, the first token of a tile, its number of tokens,
            and where the keys of its text begin. No tile has tokens of two texts.
    """

    cos: Tensor
    sin: Tensor
    positions: Tensor
    key_start: Tensor
    key_end: Tensor
    lora_rows: slice | None
    capacity: int = 0
    tiles: Tensor | None = None


class KVPointers:
    """Where layers keep their keys and values, until the buffers of the cache move.

    Attributes:
        buffers: per layer keys and values, (rows, num_kv_heads, capacity, head_dim), innermost axes contiguous.

    Raises:
        ValueError: the two innermost axes are not contiguous.
    """

    def __init__(self, buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.buffers = list(buffers)
        self.shapes = {(t.shape[1], t.shape[3], t.dtype) for pair in buffers for t in pair}
        self.rows = min(t.shape[0] for pair in buffers for t in pair)
        if any(t.stride()[2:] != (t.shape[3], 1) for pair in buffers for t in pair):
            raise ValueError("keys and values are not contiguous in their two innermost axes")
