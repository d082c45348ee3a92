"""How two models differ, tensor by tensor.

The relative change ‖aligned − base‖ / ‖base‖ (Frobenius) shows which layers the alignment moved: a layer that was
frozen is identical to the bit, and a pair without any difference is one model loaded twice. Tensors are read in chunks,
so that no second copy of a model's size is made.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from eddecode.models.common_layers import common_layers
from eddecode.models.sizes import all_names, named_tensors
from eddecode.models.tensor_bytes import byte_view, chunks

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
    common = common_layers(base, aligned)
    result["trunk"] = None if common is None else asdict(common)
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
    for x, y in zip(chunks(a), chunks(b), strict=True):
        y = y.to(x.device)
        same = same and torch.equal(byte_view(x), byte_view(y))
        wide = x.double()
        size += float(wide.square().sum())
        if not same:
            moved += float((y.double() - wide).square().sum())
    return same, moved, size
