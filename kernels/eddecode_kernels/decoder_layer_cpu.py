"""Decoder layers on the CPU: all new tokens through one layer, or through several, in one call of C++.

Between the matrix products of a layer torch runs some twenty small operations with buffers of their own. Here they are
part of the one call. Weights stay where and as they are; the order of every sum depends on sizes alone, so that a row
has the same bits in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p, pointer
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from eddecode_kernels.decoder_layer import (
    ACTIVATIONS,
    LINEARS,
    DecoderLayerWeights,
    ForwardContext,
    KVPointers,
)
from eddecode_kernels.jit import library
from eddecode_kernels.types import UnavailableError

_SYMBOLS = {torch.float32: "eddecode_decoder_layers_f32", torch.bfloat16: "eddecode_decoder_layers_bf16"}
_NORMS = ("input_norm", "post_attention_norm", "query_norm", "key_norm")
LARGEST_HEAD = 1024  # numbers; the kernel holds one head on its stack


class _Linear(Structure):
    """The struct `Linear` of csrc/decoder_layer.cpp, field for field; so are the three below."""

    _fields_ = (
        *((name, c_void_p) for name in ("weight", "bias", "lora_a", "lora_b")),
        *((name, c_int64) for name in ("n", "k", "rank")),
    )


class _Layer(Structure):
    _fields_ = (
        *((name, _Linear) for name in LINEARS),
        *((name, c_void_p) for name in _NORMS),
        ("norm_epsilon", c_double),
        *((name, c_int64) for name in ("weight_offset_one", "activation", "heads", "kv_heads", "head_dim")),
        *((name, c_float) for name in ("scale", "softcap")),
    )


class _Context(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("cos", "sin", "positions", "key_start", "key_end")),
        *((name, c_int64) for name in ("rows", "tokens", "threads", "rotary_dim", "lora_start", "lora_step")),
    )


class _Cache(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values")),
        *((name, c_int64) for name in ("key_row", "key_head", "value_row", "value_head")),
    )


_cache_structs: WeakKeyDictionary[KVPointers, Any] = WeakKeyDictionary()


class CpuDecoderLayers:
    """One or more decoder layers as one call.

    Attributes:
        shape: of every layer.
    """

    def __init__(self, weights: Sequence[DecoderLayerWeights]) -> None:
        """Needs the library: raises `UnavailableError` without it. Holds on to the weights."""
        self.weights = list(weights)
        self.shape = self.weights[0].shape
        self._function: Any = getattr(library(), _SYMBOLS[self.shape.dtype])
        self._function.argtypes = (c_void_p, c_void_p, c_void_p, c_int64, c_void_p)
        self._function.restype = None
        layers = [_layer_struct(each) for each in self.weights]
        self._tensors = [tensors for _, tensors in layers]  # kept alive: the structs point at them
        self._structs = [struct for struct, _ in layers]
        self._pointers = (POINTER(_Layer) * len(layers))(*(pointer(struct) for struct in self._structs))

    def __len__(self) -> int:
        return len(self.weights)

    def __call__(self, hidden: Tensor, contexts: Sequence[ForwardContext], caches: KVPointers) -> Tensor:
        """Hidden states (B, T, d) after the layers.

        Args:
            hidden: contiguous; overwritten with the result.
            contexts: one per layer.
            caches: of as many layers; new keys and values are written there.

        Raises:
            ValueError: dtypes or shapes are not those of the weights.
        """
        self._check(hidden, contexts, caches)
        made: dict[ForwardContext, tuple[_Context, list[Tensor]]] = {}
        for context in contexts:
            if context not in made:
                made[context] = _context_struct(context)
        array = (POINTER(_Context) * len(contexts))(*(pointer(made[context][0]) for context in contexts))
        if caches not in _cache_structs:
            _cache_structs[caches] = (_Cache * len(caches.buffers))(
                *(
                    _Cache(k.data_ptr(), v.data_ptr(), k.stride(0), k.stride(1), v.stride(0), v.stride(1))
                    for k, v in caches.buffers
                )
            )
        self._function(self._pointers, array, _cache_structs[caches], len(self), hidden.data_ptr())
        return hidden

    def _check(self, hidden: Tensor, contexts: Sequence[ForwardContext], caches: KVPointers) -> None:
        shape = self.shape
        dtypes = {hidden.dtype, *(context.cos.dtype for context in contexts)}
        if any(each.input_norm.dtype != shape.dtype for each in self.weights) or dtypes != {shape.dtype}:
            raise ValueError(
                f"hidden states are {hidden.dtype} and the weights are now {self.weights[0].input_norm.dtype}; "
                f"expected {shape.dtype}: a model must not be converted while it decodes"
            )
        for context in set(contexts):
            places = context.positions.shape
            if (
                not hidden.shape[:2] == places == context.key_start.shape == context.key_end.shape
                or context.cos.shape != context.sin.shape
                or context.cos.shape[:2] != places
                or context.cos.shape[-1] > shape.head_dim
            ):
                raise ValueError(
                    f"hidden states are {tuple(hidden.shape)}, cos is {tuple(context.cos.shape)}, positions are "
                    f"{tuple(places)} and key ranges {tuple(context.key_start.shape)}; expected (B, T, d), "
                    f"(B, T, R ≤ {shape.head_dim}) and (B, T)"
                )
        if (
            caches.shapes != {(shape.num_kv_heads, shape.head_dim, shape.dtype)}
            or caches.rows < hidden.shape[0]
            or hidden.shape[2] != shape.hidden_size
            or not len(contexts) == len(caches.buffers) == len(self)
            or not hidden.is_contiguous()
        ):
            raise ValueError(
                f"hidden states are {tuple(hidden.shape)}, keys (heads, size, dtype) {caches.shapes} of {caches.rows} "
                f"rows in {len(caches.buffers)} layers; expected (B, T, {shape.hidden_size}) contiguous and {shape} "
                f"in {len(self)} layers"
            )


def compile_decoder_layer(weights: DecoderLayerWeights) -> CpuDecoderLayers | None:
    """The compiled decoder layer, or None where C++ does not serve it: its dtype, device or layout, or no compiler."""
    dtype = weights.input_norm.dtype
    tensors = [getattr(weights, name) for name in _NORMS]
    for linear in weights.linears.values():
        tensors += [linear.weight, linear.lora_a]
    if (
        dtype not in _SYMBOLS
        or weights.head_dim > LARGEST_HEAD
        or any(
            t.dtype != dtype or t.device.type != "cpu" or not t.is_contiguous()
            for t in tensors
            if t is not None
        )
    ):
        return None
    try:
        return CpuDecoderLayers([weights])
    except UnavailableError:
        return None


def fuse_layers(layers: Sequence[CpuDecoderLayers]) -> CpuDecoderLayers | None:
    """Several layers as one call, or None if they are not of one shape."""
    if len({layer.shape for layer in layers}) != 1:
        return None
    return CpuDecoderLayers([weights for layer in layers for weights in layer.weights])


def _layer_struct(weights: DecoderLayerWeights) -> tuple[_Layer, list[Tensor]]:
    """The struct, and the tensors that it points at beside the weights."""
    tensors: list[Tensor] = []

    def float32(tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensors.append(tensor.detach().float().contiguous())
        return tensors[-1].data_ptr()

    def address(tensor: Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    layer = _Layer()
    for name, linear in weights.linears.items():
        rank = 0 if linear.lora_a is None else linear.lora_a.shape[0]
        transposed = None if linear.lora_b is None else linear.lora_b.T  # (r, N): outputs lie side by side
        struct = _Linear(
            address(linear.weight), float32(linear.bias), address(linear.lora_a), float32(transposed),
            *linear.weight.shape, rank,
        )  # fmt: skip
        setattr(layer, name, struct)
    for name in _NORMS:
        setattr(layer, name, address(getattr(weights, name)))
    layer.norm_epsilon, layer.weight_offset_one = weights.norm_epsilon, weights.weight_offset_one
    layer.activation = ACTIVATIONS.index(weights.activation)
    layer.heads, layer.kv_heads, layer.head_dim = weights.num_heads, weights.num_kv_heads, weights.head_dim
    layer.scale, layer.softcap = weights.attention_scale, weights.attention_softcap
    return layer, tensors


def _context_struct(context: ForwardContext) -> tuple[_Context, list[Tensor]]:
    """The struct, and the contiguous tensors that it points at."""
    given = (context.cos, context.sin, context.positions, context.key_start, context.key_end)
    tensors = [tensor.contiguous() for tensor in given]
    rows = context.lora_rows
    start, step = (0, 0) if rows is None else (rows.start or 0, rows.step or 1)  # step 0: no row
    return (
        _Context(
            *(tensor.data_ptr() for tensor in tensors),
            *context.positions.shape, torch.get_num_threads(), context.cos.shape[-1], start, step,
        ),
        tensors,
    )  # fmt: skip
