"""Continuous batching of requests over the slots of a runner, and speculative decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.engine.engine import Engine
    from eddecode.engine.sequence import Request

_HOMES = {
    "Engine": "eddecode.engine.engine",
    "Request": "eddecode.engine.sequence",
}

__all__ = ["Engine", "Request"]

__getattr__ = lazy_exports(__name__, _HOMES)
