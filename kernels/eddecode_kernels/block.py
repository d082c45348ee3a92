"""A whole block of a Llama-shaped transformer in one call, on the CPU: attention and feed-forward over new tokens.

What lies between the matrix products of a block, the library does in some twenty small operations with buffers of
their own. `block_for` gives all of it as one compiled call, with the same weights where and as they are; it says so by
returning None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, byref, c_double, c_float, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eddecode_kernels.compiler import library
from eddecode_kernels.problem import UnavailableError

_NAMES = {torch.float32: "eddecode_block_f32", torch.bfloat16: "eddecode_block_bf16"}
ACTIVATIONS = ("silu", "gelu_tanh")
LARGEST_HEAD = 1024  # numbers; the kernel holds one head on its stack


class _Product(Structure):
    """The struct `Product` of native/block.cpp, field for field; so are the three below."""

    _fields_ = (
        *((name, c_void_p) for name in ("w", "bias", "a", "b")),
        *((name, c_int64) for name in ("n", "k", "rank")),
    )


PRODUCTS = ("query", "key", "value", "output", "gate", "up", "down")
_NORMS = ("norm_in", "norm_mid", "norm_query", "norm_key")


class _Block(Structure):
    _fields_ = (
        *((name, _Product) for name in PRODUCTS),
        *((name, c_void_p) for name in _NORMS),
        ("epsilon", c_double),
        *((name, c_int64) for name in ("from_one", "activation", "heads", "key_heads", "size")),
        *((name, c_float) for name in ("scale", "softcap")),
    )


class _Pass(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("cos", "sin", "position", "first", "stop")),
        *((name, c_int64) for name in ("rows", "tokens", "threads", "turned", "changed", "every")),
    )


class _Cache(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values")),
        *((name, c_int64) for name in ("key_row", "key_head", "value_row", "value_head")),
    )


@dataclass(frozen=True)
class Product:
    """A linear layer x·Wᵀ + bias, and the low-rank x·Aᵀ·Bᵀ that some rows take on top.

    Attributes:
        weight: (N, K).
        bias: (N,) or None.
        a, b: (r, K) and (N, r), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None


@dataclass(frozen=True)
class BlockParts:
    """What a block consists of. Products and norm weights are of one dtype, float32 or bfloat16, and contiguous.

    Attributes:
        products: by the names in PRODUCTS.
        norm_in, norm_mid: (d,) weights of the RMSNorms before attention and before feed-forward.
        norm_query, norm_key: (head size,) weights of RMSNorms of every head, or None.
        epsilon: of all norms.
        from_one: norm weights count from one (see `rms_norm_for`).
        activation: of the gate, one of ACTIVATIONS.
        heads, key_heads, size: of attention; `size` is that of a head.
        scale, softcap: of scores (see `attend`).
    """

    products: dict[str, Product]
    norm_in: Tensor
    norm_mid: Tensor
    norm_query: Tensor | None
    norm_key: Tensor | None
    epsilon: float
    from_one: bool
    activation: str
    heads: int
    key_heads: int
    size: int
    scale: float
    softcap: float = 0.0


class Pass:
    """What all blocks of one forward pass have in common.

    Args:
        cos, sin: (B, T, turned) of the blocks' dtype, contiguous: the angles of every token; the first half of what is
            turned is paired with the second (Llama's layout of RoPE, arXiv 2104.09864).
        position: (B, T) int64, where keys and values go.
        first, stop: (B, T) int64; keys first ≤ position < stop are seen.
        changed: which rows take the low-rank changes; None is none.
    """

    def __init__(
        self, cos: Tensor, sin: Tensor, position: Tensor, first: Tensor, stop: Tensor, changed: slice | None
    ) -> None:
        self._kept = tensors = tuple(tensor.contiguous() for tensor in (cos, sin, position, first, stop))
        self.shape = rows, tokens = position.shape
        if (
            cos.shape != sin.shape
            or cos.shape[:2] != self.shape
            or not self.shape == first.shape == stop.shape
        ):
            raise ValueError(
                f"cos is {tuple(cos.shape)} and positions are {tuple(position.shape)}, {tuple(first.shape)}, "
                f"{tuple(stop.shape)}; expected (B, T, turned) and (B, T)"
            )
        self.turned, self.dtype = cos.shape[2], cos.dtype  # numbers of a head
        start, every = (0, 0) if changed is None else (changed.start or 0, changed.step or 1)
        self.struct = _Pass(
            *(t.data_ptr() for t in tensors),
            rows,
            tokens,
            torch.get_num_threads(),
            cos.shape[2],
            start,
            every,
        )


BlockCall = Callable[[Tensor, Pass, Tensor, Tensor], Tensor]


def block_for(parts: BlockParts) -> BlockCall | None:
    """The compiled block, or None where it does not apply.

    Returns:
        A function of hidden states (B, T, d), the pass, and the keys and values that the rows see, (B, G, ≥ stop, size)
        each, innermost axes contiguous; it writes the new ones in place and returns the hidden states after the block.
        It holds on to the weights.
    """
    dtype = parts.norm_in.dtype
    name = _NAMES.get(dtype)
    tensors = [parts.norm_in, parts.norm_mid, parts.norm_query, parts.norm_key]
    for product in parts.products.values():
        tensors += [product.weight, product.a]
    stored = [tensor for tensor in tensors if tensor is not None]
    if (
        name is None
        or parts.size > LARGEST_HEAD
        or any(t.dtype != dtype or t.device.type != "cpu" or not t.is_contiguous() for t in stored)
    ):
        return None
    try:
        compiled: Any = getattr(library(), name)
    except UnavailableError:
        return None
    compiled.argtypes, compiled.restype = (c_void_p,) * 5, None
    block, alive = _struct(parts)
    width, size, key_heads = parts.norm_in.shape[0], parts.size, parts.key_heads

    def run(x: Tensor, common: Pass, keys: Tensor, values: Tensor, _alive: Any = (parts, alive)) -> Tensor:
        if any(tensor.dtype != dtype for tensor in (parts.norm_in, x, keys, values)) or common.dtype != dtype:
            raise ValueError(
                f"hidden states are {x.dtype} and the weights are now {parts.norm_in.dtype}; expected {dtype}: a model "
                "must not be converted while it decodes"
            )
        expected = (common.shape[0], key_heads, size)
        if (
            common.turned > size
            or x.shape != (*common.shape, width)
            or any(
                (t.shape[0], t.shape[1], t.shape[3]) != expected or t.stride()[2:] != (size, 1)
                for t in (keys, values)
            )
        ):
            raise ValueError(
                f"hidden states are {tuple(x.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}; expected "
                f"{(*common.shape, width)} and {expected[:2]}, …, {size} each"
            )
        x = x.contiguous()
        y = torch.empty_like(x)
        cache = _Cache(
            keys.data_ptr(),
            values.data_ptr(),
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
        )
        compiled(byref(block), byref(common.struct), byref(cache), x.data_ptr(), y.data_ptr())
        return y

    return run


def _struct(parts: BlockParts) -> tuple[_Block, list[Tensor]]:
    """The struct, and the tensors that it points at beside the weights."""
    alive: list[Tensor] = []

    def float32(tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        alive.append(tensor.detach().float().contiguous())
        return alive[-1].data_ptr()

    def at(tensor: Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    block = _Block()
    for name, p in parts.products.items():
        rank = 0 if p.a is None else p.a.shape[0]
        spread = None if p.b is None else p.b.T  # (r, N): sixteen outputs lie side by side
        setattr(
            block,
            name,
            _Product(at(p.weight), float32(p.bias), at(p.a), float32(spread), *p.weight.shape, rank),
        )
    for name in _NORMS:
        setattr(block, name, at(getattr(parts, name)))
    block.epsilon, block.from_one = parts.epsilon, parts.from_one
    block.activation = ACTIVATIONS.index(parts.activation)
    block.heads, block.key_heads, block.size = parts.heads, parts.key_heads, parts.size
    block.scale, block.softcap = parts.scale, parts.softcap
    return block, alive
