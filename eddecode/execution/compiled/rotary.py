"""Rotary angles (RoPE, arXiv 2104.09864) by position, looked up where a model would work them out at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


STEP = 1024  # positions: a table's length is a multiple of that
# Kinds of RoPE whose angles depend on the longest text of the batch as well:
CHANGING = ("dynamic", "longrope")


class RotaryTable:
    """Cosines and sines of a body's rotary module, whose frequencies are not to be changed.

    Attributes:
        by_position: whether they depend on the position alone, so that there can be tables.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.by_position = _stays(getattr(module, "rope_type", None))
        self._tables: tuple[Tensor, Tensor] | None = None

    def __call__(self, hidden: Tensor, positions: Tensor, stop: int | None) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (P, turned) by position for at least `stop` positions, or (B, T, turned) by token.

        Args:
            hidden: of the dtype, and on the device, that they are wanted in.
            positions: (B, T) int64.
            stop: all positions are below this, and a table will do; None if only each token's own will.
        """
        if stop is None or not self.by_position:
            cos, sin = self._module(hidden, position_ids=positions)
            shape = (*positions.shape, cos.shape[-1])
            return cos.expand(shape), sin.expand(shape)
        tables = self._tables
        if tables is None or len(tables[0]) < stop or tables[0].dtype != hidden.dtype:
            most = max(stop, 0 if tables is None else len(tables[0]) * 5 // 4)
            every = torch.arange(-(-most // STEP) * STEP, device=hidden.device)[None]
            cos, sin = self._module(hidden, position_ids=every)
            tables = self._tables = cos[0].contiguous(), sin[0].contiguous()
        return tables


def _stays(kind: Any) -> bool:
    return isinstance(kind, str) and not any(changing in kind for changing in CHANGING)


def rope_window(model: Any) -> int | None:
    """Positions up to which the model's rotary frequencies stay the same, or None if they always do.

    "longrope" (Phi-3) and "dynamic" choose them by the longest text in the batch: beyond this length a row would
    depend on its mates, and keys that are cached already would have been turned by other angles.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    by_kind = [
        part for part in rope.values() if isinstance(part, dict)
    ]  # one per kind of layer, or one for all
    changing = [part for part in by_kind or [rope] if part.get("rope_type") in ("longrope", "dynamic")]
    originals = [
        part.get("original_max_position_embeddings") or config.max_position_embeddings for part in changing
    ]
    return min(map(int, originals), default=None)
