"""Garbage collection: rarer in programs of our own, and left alone in a program that imports the library."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from eddecode.cli import commands
from eddecode.utils.collection import collect_rarely


@pytest.fixture(autouse=True)
def _as_python_starts() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_new_objects_are_looked_through_after_more_of_them() -> None:
    collect_rarely()
    assert gc.get_threshold() == (10_000, 10, 10)
    assert gc.isenabled()


def test_the_command_does_so_before_it_imports_much(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(commands, "app", lambda: seen.append(gc.get_threshold()))
    commands.main()
    assert seen == [(10_000, 10, 10)]
