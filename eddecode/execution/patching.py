"""Replacing the forward pass of modules for the length of a block, and seeing whether someone else already has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_MISSING = object()


@contextmanager
def patched_forward(forwards: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Within the block each module's forward pass is the given function; what was there before is put back at the end.

    accelerate's hooks wrap `forward` and keep the original in `_old_forward`: where there is one, that is what is
    replaced, so that the hooks still run.
    """
    before = []
    for module, forward in forwards.items():
        attributes = vars(module)  # not setattr, which takes long on a module
        name = "_old_forward" if "_old_forward" in attributes else "forward"
        before.append((attributes, name, attributes.get(name, _MISSING)))
        attributes[name] = forward
    try:
        yield
    finally:
        for attributes, name, old in before:
            if old is _MISSING:
                attributes.pop(name, None)
            else:
                attributes[name] = old


def has_hooks(module: Any) -> bool:
    """Whether forward hooks are registered on a module, or something stands in for its forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
