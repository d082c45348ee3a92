"""Rotary position embeddings (RoPE, arXiv 2104.09864) whose frequencies depend on the length of a text."""

from __future__ import annotations

from typing import Any

from eddecode.models.diagnostics import Diagnostic


def rope_window(model: Any) -> int | None:
    """Positions up to which the model's rotary frequencies stay the same, or None if they always do.

    "longrope" (Phi-3) and "dynamic" choose them by the longest text in the batch: beyond this length a row would
    depend on its mates, and keys that are cached already would have been turned by other angles.
    """
    config = model.config.get_text_config()
    changing = [part for part in _rope_parts(config) if _changes_with_length(part)]
    originals = [
        part.get("original_max_position_embeddings") or config.max_position_embeddings for part in changing
    ]
    return min(map(int, originals), default=None)


def use_long_rope(config: Any) -> bool:
    """Make a configuration use the frequencies for long texts for texts of every length; whether it has such.

    That is what the model itself does for any text beyond its original window ("longrope": Phi-3 and Phi-4-mini, arXiv
    2402.13753). Short texts are then read by other angles than without it.
    """
    parts = _long_rope_parts(config)
    for part in parts:
        part["short_factor"] = part["long_factor"]
    return bool(parts)


def window_note(config: Any, side: str) -> list[Diagnostic]:
    """A note where a model is cut to its original window, with the way to the long one."""
    parts = _long_rope_parts(config)
    original = min((int(part.get("original_max_position_embeddings") or 0) for part in parts), default=0)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if (
        not any(_changes_with_length(part) for part in parts)
        or not isinstance(longest, int)
        or original >= longest
    ):
        return []
    return [
        Diagnostic(
            "info",
            side,
            f"it reads texts of at most {original:,} of its {longest:,} tokens: beyond, its rotary angles (longrope) "
            "are others, for all of a text",
            "long_context=True (--long-context) uses the angles for long texts for every text",
        )
    ]


def _rope_parts(config: Any) -> list[dict[str, Any]]:
    """The rotary parameters: one set per kind of layer, or one for all."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [part for part in rope.values() if isinstance(part, dict)] or [rope]


def _long_rope_parts(config: Any) -> list[dict[str, Any]]:
    """Those with two sets of frequencies, for short and for long texts."""
    return [part for part in _rope_parts(config.get_text_config()) if part.get("rope_type") == "longrope"]


def _changes_with_length(part: dict[str, Any]) -> bool:
    if part.get("rope_type") == "longrope":
        return part.get("short_factor") != part.get("long_factor")
    return part.get("rope_type") == "dynamic"
