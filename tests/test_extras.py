"""All extras resolve together: constraints.txt is one set of versions that every requirement of every extra accepts.

A pin that one package refuses makes `pip install -c constraints.txt` search for many minutes before it fails. So the
pins are checked against the requirements of eddecode's extras, and against the requirements of every pinned package
that is installed, without a network. CI has pip resolve them too (job `resolve`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line
)


def requirements(lines: list[str], extras: frozenset[str]) -> Iterator[Requirement]:
    """Those that hold in this environment with one of the extras."""
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            yield requirement


def refused(lines: list[str], extras: frozenset[str] = frozenset()) -> list[str]:
    """What constraints.txt does not satisfy, pins missing included."""
    found = []
    for requirement in requirements(lines, extras):
        pin = PINS.get(canonicalize_name(requirement.name))
        if requirement.name == PROJECT["name"]:
            continue
        if pin is None or not requirement.specifier.contains(pin, prereleases=True):
            found.append(f"{requirement} against {pin or 'no pin'}")
    return found


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_the_pins_satisfy_every_extra(extra: str) -> None:
    assert refused(EXTRAS[extra] if extra else PROJECT["dependencies"]) == []


def test_a_pin_that_an_extra_refuses_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PINS, "inspect-ai", "0.3.1")
    monkeypatch.delitem(PINS, "ray")
    assert len(refused(EXTRAS["inspect"])) == len(refused(EXTRAS["ray"])) == 1


def test_the_extra_all_is_the_sum_of_the_others() -> None:
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.extras == set(EXTRAS) - {"all", "dev"}


def test_the_pinned_packages_accept_each_other() -> None:
    """The requirements of every pinned package, walked from eddecode's extras; as they are installed here."""
    waiting = [
        (canonicalize_name(r.name), frozenset(r.extras))
        for lines in EXTRAS.values()
        for r in map(Requirement, lines)
    ]
    waiting += [
        (canonicalize_name(r.name), frozenset(r.extras)) for r in map(Requirement, PROJECT["dependencies"])
    ]
    seen, wrong = set(), []
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen or name == PROJECT["name"] or name.startswith("nvidia-"):
            continue
        seen.add((name, extras))
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue  # CI installs all; a smaller environment checks what it has
        if installed.version.partition("+")[0] != PINS.get(name):
            continue  # another version has other requirements
        lines = installed.requires or []
        wrong += [f"{name} needs {line}" for line in refused(lines, extras) if "cuda" not in line]
        waiting += [(canonicalize_name(r.name), frozenset(r.extras)) for r in requirements(lines, extras)]
    assert wrong == []
    assert len(seen) > 25
