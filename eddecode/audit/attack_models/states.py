"""The residual stream that attacks are fitted on: its means over texts, and the layers after which it may be taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eddecode.audit.attack_models.first_tokens import Texts
from eddecode.models.residual_writers import residuals

LAST_SHARE = 0.2  # of the layers give no candidates


def candidate_layers(depth: int, layer: int | None) -> list[int]:
    """Indices of the layers, of `depth`, that are tried: the one that was asked for, or all but the last ones."""
    return [layer] if layer is not None else list(range(max(1, int(depth * (1 - LAST_SHARE)))))


def mean_states(model: Any, texts: Texts, positions: int) -> Tensor:
    """(layers, positions, d) float32: mean over texts of the states at their last tokens."""
    total: Any = 0.0
    for text in texts:
        total = total + residuals(model, text, positions).double()
    return torch.as_tensor(total / len(texts)).float()
