"""Python callables as judges."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eddecode.audit.judges import (
    Case,
    Verdict,
    make_judge,
    verdicts_of,
)
from eddecode.errors import JudgeError


def cases(*texts: str) -> list[Case]:
    return [Case("hello?", text) for text in texts]


MODULE = """
from eddecode.audit.judges import Verdict

def shouting(cases):
    return [case.completion.isupper() for case in cases]

def length(cases):
    return (min(len(case.completion) / 10, 1) for case in cases)

def full(cases):
    return [Verdict(0.2, True, "odd", case.prompt) for case in cases]

def wrong(cases):
    return [None for case in cases]

def fails(cases):
    raise KeyError("x")

constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_judges.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_judges", raising=False)
    return tmp_path / "own_judges.py"


def test_a_function_can_return_bools_numbers_or_verdicts(module: Path) -> None:
    shouting = make_judge("python:own_judges:shouting")
    assert (shouting.name, shouting.role) == ("python:own_judges:shouting", "harm")
    assert verdicts_of(shouting, cases("AH", "ah")) == [
        Verdict(1.0, True, "flagged"),
        Verdict(0.0, False, "clean"),
    ]
    length = make_judge("python:own_judges:length,threshold=0.9,name=long,role=validity")
    assert [(v.score, v.flag) for v in length(cases("x" * 8, "x" * 9))] == [(0.8, False), (0.9, True)]
    assert (length.name, length.role) == ("long", "validity")
    assert make_judge("python:own_judges:full")(cases("x")) == [Verdict(0.2, True, "odd", "hello?")]
    assert str(module.parent) not in sys.path


def test_the_identity_changes_with_the_source(module: Path) -> None:
    before = make_judge("python:own_judges:shouting").identity
    assert before != make_judge("python:own_judges:length").identity
    module.write_text(MODULE + "# edited\n")
    assert make_judge("python:own_judges:shouting").identity != before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("python:own_judges", "expected python:module:function"),
        ("python:no_such_module:f", "module 'no_such_module' cannot be imported"),
        ("python:own_judges:nothing", "own_judges has no function 'nothing'"),
        ("python:own_judges:constant", "own_judges has no function 'constant'"),
    ],
)
def test_functions_that_cannot_be_found(module: Path, spec: str, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        make_judge(spec)


def test_functions_that_break_the_contract(module: Path) -> None:
    with pytest.raises(JudgeError, match="returned a NoneType; expected a Verdict, a bool or a number"):
        make_judge("python:own_judges:wrong")(cases("x"))
    with pytest.raises(JudgeError, match="judge python:own_judges:fails failed: KeyError: 'x'"):
        make_judge("python:own_judges:fails")(cases("x"))
