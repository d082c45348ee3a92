"""How two models differ, tensor by tensor, and what holding them costs.

The relative movement ‖aligned − base‖ / ‖base‖ (Frobenius) shows where the alignment went: a layer that was frozen is
identical to the bit, and a pair that differs nowhere is one model loaded twice. Tensors are read in chunks, so that
nothing of a model's size is held a second time. Equal tensors are held once; layers that are equal from the first one
on are a trunk that can be run once for both models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from eddecode.errors import PairError
from eddecode.models.common_layers import common_trunk
from eddecode.models.fingerprint import combine, tensor_digest
from eddecode.models.sizes import all_names, named_tensors
from eddecode.models.weight_sharing import _CHUNK, _bits

_LAYER = re.compile(r"^(.*?\.\d+)(?:\.|$)")


def compare_tensors(base: Any, aligned: Any) -> dict[str, Any]:
    """Which tensors are equal to the bit, and how far the others moved. The schema is in `ModelPair.describe`."""
    ours, theirs = named_tensors(base), all_names(aligned)
    also_theirs = named_tensors(aligned)
    layers: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {
        "identical": [],
        "moved": {},
        "different_shape": [],
        "not_in_memory": [],
        "only_base": sorted(ours.keys() - theirs.keys()),
        "only_aligned": sorted(also_theirs.keys() - all_names(base).keys()),
    }
    identical_bytes = 0
    for name in [name for name in ours if name in theirs]:
        a, b = ours[name], theirs[name]
        if a.is_meta or b.is_meta:  # offloaded by a device_map
            result["not_in_memory"].append(name)
        elif a.shape != b.shape:
            result["different_shape"].append(name)
        else:
            same, moved, size = _difference(a, b)
            layer = layers.setdefault(layer_of(name), {"moved": 0.0, "size": 0.0, "n": 0, "identical": True})
            layer["moved"] += moved
            layer["size"] += size
            layer["n"] += a.numel()
            layer["identical"] &= same
            if same:
                result["identical"].append(name)
                identical_bytes += a.nbytes
            else:
                result["moved"][name] = _ratio(moved, size)
    result["identical_bytes"] = identical_bytes
    result["layers"] = [
        {
            "layer": name,
            "parameters": layer["n"],
            "identical": layer["identical"],
            "relative_change": _ratio(layer["moved"], layer["size"]),
        }
        for name, layer in layers.items()
    ]
    result["relative_change"] = _ratio(
        sum(layer["moved"] for layer in layers.values()), sum(layer["size"] for layer in layers.values())
    )
    trunk = common_trunk(base, aligned)
    result["trunk"] = None if trunk is None else asdict(trunk)
    return result


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to: `model.layers.3` for `model.layers.3.mlp.up_proj.weight`."""
    match = _LAYER.match(name)
    return match.group(1) if match else name.rpartition(".")[0] or name


def _ratio(moved: float, size: float) -> float | None:
    """√(moved / size) for two squared norms; None where a tensor of zeros moved (no relative size)."""
    if moved == 0.0:
        return 0.0
    return (moved / size) ** 0.5 if size > 0.0 else None


def _difference(a: Tensor, b: Tensor) -> tuple[bool, float, float]:
    """(equal to the bit, ‖b − a‖², ‖a‖²), in float64 chunk by chunk."""
    same = a.dtype == b.dtype
    moved = size = 0.0
    left, right = a.reshape(-1), b.reshape(-1)
    for start in range(0, left.numel(), _CHUNK):
        x, y = left[start : start + _CHUNK], right[start : start + _CHUNK].to(a.device)
        same = same and torch.equal(_bits(x), _bits(y))
        wide = x.double()
        size += float(wide.square().sum())
        if not same:
            moved += float((y.double() - wide).square().sum())
    return same, moved, size


def model_digest(model: Any, eos_ids: frozenset[int]) -> bytes:
    """16 bytes over configuration, EOS ids and every tensor in memory; for models that came from no file."""
    if any(tensor.is_meta for tensor in named_tensors(model).values()):
        raise PairError(
            "a model given in memory has weights that are offloaded, so that its content cannot be fingerprinted; load "
            "it from its files with ModelPair.load(…, device_map=…), or give it before it is offloaded"
        )
    config = {
        k: v for k, v in model.config.to_dict().items() if k not in ("transformers_version", "_name_or_path")
    }
    head = repr((sorted(config.items(), key=lambda item: item[0]), sorted(eos_ids))).encode()
    tensors = sorted(
        tensor_digest(name, str(tensor.dtype), tensor.shape, _buffers(tensor))
        for name, tensor in named_tensors(model).items()
    )
    return combine(head, *tensors)


def _buffers(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        yield _bits(flat[start : start + _CHUNK].cpu()).numpy().data


# Held once -------------------------------------------------------------------------------------------------------


# A trunk in common -----------------------------------------------------------------------------------------------


# Cost ------------------------------------------------------------------------------------------------------------
