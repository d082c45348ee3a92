"""Exports of a package that are imported on first use (PEP 562), so that importing the package is fast."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that exports names from other modules.

    Args:
        package: its name, for the error message.
        homes: public name → dotted module that defines it.

    Returns:
        A function that imports a name's module, stores the object in the package, and returns it.

    Raises:
        AttributeError: by the function, for a name that is not exported; the message lists those that are.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it exports {', '.join(sorted(homes))}"
            )
        found = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, found)
        return found

    return load
