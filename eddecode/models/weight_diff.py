"""How two models differ, tensor by tensor.

The relative change ‖aligned − base‖ / ‖base‖ (Frobenius) shows which layers the alignment moved: a layer that was
frozen is identical to the bit, and a pair without any difference is one model loaded twice. Tensors are read in chunks,
so that no second copy of a model's size is made.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from eddecode.models.common_layers import common_layers
from eddecode.models.sizes import all_names, named_tensors
from eddecode.models.tensor_bytes import byte_view, chunks

_LAYER = re.compile(r"^(.*?\.\d+)(?:\.|$)")


@dataclass
class _LayerChange:
    """Sums over the tensors of one layer; changed, norm: squared norms of the difference and of the base."""

    changed: float = 0.0
    norm: float = 0.0
    parameters: int = 0
    is_identical: bool = True

    def add(self, tensor: Tensor, is_identical: bool, changed: float, norm: float) -> None:
        self.changed += changed
        self.norm += norm
        self.parameters += tensor.numel()
        self.is_identical &= is_identical


def compare_tensors(base: Any, aligned: Any) -> dict[str, Any]:
    """Which tensors are identical to the bit, and how far the others moved; the schema is in `ModelPair.describe`."""
    ours, theirs = named_tensors(base), all_names(aligned)
    layers: dict[str, _LayerChange] = {}
    result: dict[str, Any] = {
        "identical": [],
        "moved": {},
        "different_shape": [],
        "not_in_memory": [],
        "only_base": sorted(ours.keys() - theirs.keys()),
        "only_aligned": sorted(named_tensors(aligned).keys() - all_names(base).keys()),
    }
    for name in [name for name in ours if name in theirs]:
        a, b = ours[name], theirs[name]
        if a.is_meta or b.is_meta:  # offloaded by a device_map
            result["not_in_memory"].append(name)
        elif a.shape != b.shape:
            result["different_shape"].append(name)
        else:
            is_identical, changed, norm = _difference(a, b)
            layers.setdefault(layer_of(name), _LayerChange()).add(a, is_identical, changed, norm)
            if is_identical:
                result["identical"].append(name)
            else:
                result["moved"][name] = _ratio(changed, norm)
    common = common_layers(base, aligned)
    return result | {
        "identical_bytes": sum(ours[name].nbytes for name in result["identical"]),
        "layers": [
            {
                "layer": name,
                "parameters": layer.parameters,
                "identical": layer.is_identical,
                "relative_change": _ratio(layer.changed, layer.norm),
            }
            for name, layer in layers.items()
        ],
        "relative_change": _ratio(
            sum(layer.changed for layer in layers.values()), sum(layer.norm for layer in layers.values())
        ),
        "trunk": None if common is None else asdict(common),
    }


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to: `model.layers.3` for `model.layers.3.mlp.up_proj.weight`."""
    match = _LAYER.match(name)
    return match.group(1) if match else name.rpartition(".")[0] or name


def _ratio(changed: float, norm: float) -> float | None:
    """√(changed / norm) for two squared norms; None where a tensor of zeros changed (no relative change)."""
    if changed == 0.0:
        return 0.0
    return (changed / norm) ** 0.5 if norm > 0.0 else None


def _difference(a: Tensor, b: Tensor) -> tuple[bool, float, float]:
    """(identical to the bit, ‖b − a‖², ‖a‖²), in float64, chunk by chunk."""
    is_identical = a.dtype == b.dtype
    changed = norm = 0.0
    for x, y in zip(chunks(a), chunks(b), strict=True):
        y = y.to(x.device)
        is_identical = is_identical and torch.equal(byte_view(x), byte_view(y))
        wide = x.double()
        norm += float(wide.square().sum())
        if not is_identical:
            changed += float((y.double() - wide).square().sum())
    return is_identical, changed, norm
