"""Tensors that are identical to the bit in several models are held once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eddecode.models.tensor_bytes import byte_view, equal_bits


def share_identical(models: Sequence[Any]) -> int:
    """Make later models use an earlier model's copy of every tensor that is identical to the bit.

    Tensors are matched by content, whatever their names. Only plain tensors are shared that need no gradient, are in
    memory and on the same device, and none within one model: a quantized weight has a state of its own, and training a
    shared weight would change the other model. Writing into a shared weight afterwards changes all of its models.

    Returns:
        The bytes that were freed.
    """
    kept: dict[tuple[Any, ...], dict[str, Tensor]] = {}
    freed = 0
    for model in models:
        own: list[tuple[tuple[Any, ...], str, Tensor]] = []
        for name, tensor in _shareable(model).items():
            key = (tensor.dtype, tensor.shape, tensor.device, _sampled_bytes(tensor))
            others = kept.get(key, {})
            likely = sorted(others, key=lambda other: other != name)  # the same name first
            twin = next((others[other] for other in likely if equal_bits(tensor, others[other])), None)
            if twin is None:
                own.append((key, name, tensor))
            elif twin.data_ptr() != tensor.data_ptr():
                freed += tensor.nbytes
                tensor.data = twin.data
        for key, name, tensor in own:
            kept.setdefault(key, {}).setdefault(name, tensor)
    return freed


def _shareable(model: Any) -> dict[str, Tensor]:
    """The tensors of a model that another model may use; a tied one once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        plain = type(tensor) in (torch.nn.Parameter, Tensor)
        if plain and not tensor.is_meta and not tensor.requires_grad and tensor.nbytes:
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _sampled_bytes(tensor: Tensor) -> bytes:
    """A few bytes spread over a tensor; they distinguish most tensors without reading them completely."""
    flat = tensor.detach().reshape(-1)
    return bytes(byte_view(flat[:: max(1, flat.numel() // 64)]).cpu().numpy().tobytes())


def resident_bytes(models: Sequence[Any]) -> tuple[int, int]:
    """(bytes of all parameters and buffers in memory, bytes of those that a later model shares with an earlier one)."""
    held: dict[tuple[torch.device, int], int] = {}
    shared = 0
    for model in models:
        own = {
            (tensor.device, tensor.data_ptr()): tensor.nbytes
            for tensor in [*model.parameters(), *model.buffers()]
            if not tensor.is_meta
        }
        shared += sum(size for place, size in own.items() if place in held and size)
        held.update(own)
    return sum(held.values()), shared
