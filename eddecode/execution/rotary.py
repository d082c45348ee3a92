"""Rotary position embeddings (RoPE, arXiv 2104.09864) whose frequencies depend on the length of a text."""

from __future__ import annotations

from typing import Any

DYNAMIC_ROPE_TYPES = ("longrope", "dynamic")  # their frequencies depend on the longest text of the batch


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
    changing = [part for part in by_kind or [rope] if part.get("rope_type") in DYNAMIC_ROPE_TYPES]
    originals = [
        part.get("original_max_position_embeddings") or config.max_position_embeddings for part in changing
    ]
    return min(map(int, originals), default=None)
