"""The public names are there, and each is the thing that its name says."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

FACES = (
    *("eddecode", "eddecode.audit", "eddecode.audit.export", "eddecode.audit.judges", "eddecode.audit.stats"),
    *("eddecode.audit.store", "eddecode.cli", "eddecode.engine", "eddecode.lab", "eddecode.prompts"),
    "eddecode.integrations.transformers",
    *("eddecode.sampling", "eddecode.scoring"),
)


@pytest.mark.parametrize("face", FACES)
def test_every_offered_name_is_there_and_is_no_module(face: str) -> None:
    """A module with the name of a function that its package offers would replace the function once it is imported."""
    package = importlib.import_module(face)
    for _, name, _ in pkgutil.iter_modules(package.__path__):
        if name in package.__all__:
            importlib.import_module(f"{face}.{name}")
    for name in package.__all__:
        assert not isinstance(getattr(package, name), ModuleType), f"{face}.{name}"


@pytest.mark.parametrize("face", FACES)
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(face: str) -> None:
    package = importlib.import_module(face)
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018


def test_contrast_is_the_function() -> None:
    importlib.import_module("eddecode.sampling.contrast")
    from eddecode import contrast

    assert inspect.isfunction(contrast)
