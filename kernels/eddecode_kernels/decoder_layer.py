"""A whole block of a Llama-shaped transformer in one call, on the CPU: attention and feed-forward over new tokens.

What lies between the matrix products of a block, the library does in some twenty small operations with buffers of
their own. `block_for` gives all of it as one compiled call, with the same weights where and as they are, and `in_a_row`
several blocks as one call; they say so by returning None where that does not apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p, pointer
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eddecode_kernels.jit import library
from eddecode_kernels.types import UnavailableError

_NAMES = {torch.float32: "eddecode_blocks_f32", torch.bfloat16: "eddecode_blocks_bf16"}
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
        cos, sin: of the blocks' dtype: the angles of every token (B, T, turned); the first half of what is turned is
            paired with the second (Llama's layout of RoPE, arXiv 2104.09864).
        position: (B, T) int64, where keys and values go.
        first, stop: (B, T) int64; keys first ≤ position < stop are seen.
        changed: which rows take the low-rank changes; None is none.
    """

    def __init__(
        self, cos: Tensor, sin: Tensor, position: Tensor, first: Tensor, stop: Tensor, changed: slice | None
    ) -> None:
        self._kept = tensors = tuple(tensor.contiguous() for tensor in (cos, sin, position, first, stop))
        self.shape = rows, tokens = position.shape
        if cos.shape != sin.shape or not cos.shape[:2] == self.shape == first.shape == stop.shape:
            raise ValueError(
                f"cos is {tuple(cos.shape)} and positions are {tuple(position.shape)}, {tuple(first.shape)}, "
                f"{tuple(stop.shape)}; expected (B, T, turned) and (B, T)"
            )
        self.turned, self.dtype = cos.shape[-1], cos.dtype  # numbers of a head
        start, every = (0, 0) if changed is None else (changed.start or 0, changed.step or 1)
        self.struct = _Pass(
            *(t.data_ptr() for t in tensors),
            rows,
            tokens,
            torch.get_num_threads(),
            self.turned,
            start,
            every,
        )


class KVPointers:
    """Where blocks keep keys and values: of one cache, until its buffers move.

    Args:
        pairs: per block keys and values (rows, G, positions, size), innermost axes contiguous.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.pairs = list(pairs)
        self.shapes = {(t.shape[1], t.shape[3], t.dtype) for pair in pairs for t in pair}
        self.rows = min(t.shape[0] for pair in pairs for t in pair)
        if any(t.stride()[2:] != (t.shape[3], 1) for pair in pairs for t in pair):
            raise ValueError("keys and values are not contiguous in their two innermost axes")
        self.structs = (_Cache * len(self.pairs))(
            *(
                _Cache(k.data_ptr(), v.data_ptr(), k.stride(0), k.stride(1), v.stride(0), v.stride(1))
                for k, v in self.pairs
            )
        )


class Blocks:
    """Compiled blocks in a row; see `block_for` and `in_a_row`."""

    def __init__(self, parts: Sequence[BlockParts]) -> None:
        self.parts = list(parts)
        first = self.parts[0]
        self.dtype, self.width = first.norm_in.dtype, first.norm_in.shape[0]
        self.shape = first.key_heads, first.size, self.dtype
        self._compiled: Any = getattr(library(), _NAMES[self.dtype])
        self._compiled.argtypes, self._compiled.restype = (
            (c_void_p, c_void_p, c_void_p, c_int64, c_void_p),
            None,
        )
        made = [_struct(each) for each in self.parts]
        self._alive = [tensors for _, tensors in made]
        self._structs = [struct for struct, _ in made]
        self._pointers = (POINTER(_Block) * len(made))(*(pointer(struct) for struct in self._structs))

    def __len__(self) -> int:
        return len(self.parts)

    def __call__(self, x: Tensor, passes: Sequence[Pass], places: KVPointers) -> Tensor:
        """Hidden states (B, T, d) after the blocks.

        Args:
            x: contiguous; overwritten with the result.
            passes: one per block.
            places: of as many blocks; new keys and values are written there.

        Raises:
            ValueError: dtypes or shapes are not those of the weights.
        """
        common = passes[0]
        if any(each.norm_in.dtype != self.dtype for each in self.parts) or {x.dtype, common.dtype} != {
            self.dtype
        }:
            raise ValueError(
                f"hidden states are {x.dtype} and the weights are now {self.parts[0].norm_in.dtype}; expected "
                f"{self.dtype}: a model must not be converted while it decodes"
            )
        if (
            places.shapes != {self.shape}
            or places.rows < common.shape[0]
            or x.shape != (*common.shape, self.width)
            or common.turned > self.shape[1]
            or not len(passes) == len(places.pairs) == len(self)
            or not x.is_contiguous()
        ):
            raise ValueError(
                f"hidden states are {tuple(x.shape)}, keys (heads, size, dtype) {places.shapes} of {places.rows} rows "
                f"in {len(places.pairs)} blocks; expected {(*common.shape, self.width)} contiguous and {self.shape} in "
                f"{len(self)} blocks"
            )
        each = (POINTER(_Pass) * len(passes))(*(pointer(one.struct) for one in passes))
        self._compiled(self._pointers, each, places.structs, len(self), x.data_ptr())
        return x


def block_for(parts: BlockParts) -> Blocks | None:
    """The compiled block, or None where it does not apply. It holds on to the weights."""
    dtype = parts.norm_in.dtype
    tensors = [parts.norm_in, parts.norm_mid, parts.norm_query, parts.norm_key]
    for product in parts.products.values():
        tensors += [product.weight, product.a]
    stored = [tensor for tensor in tensors if tensor is not None]
    if (
        dtype not in _NAMES
        or parts.size > LARGEST_HEAD
        or any(t.dtype != dtype or t.device.type != "cpu" or not t.is_contiguous() for t in stored)
    ):
        return None
    try:
        return Blocks([parts])
    except UnavailableError:
        return None


def in_a_row(blocks: Sequence[Blocks]) -> Blocks | None:
    """Several blocks as one call, or None if they are not of one shape."""
    if len({(block.width, block.shape) for block in blocks}) != 1:
        return None
    return Blocks([parts for block in blocks for parts in block.parts])


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
