"""Python callables as judges."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit.judges import (
    Case,
    Verdict,
    make_judge,
    make_judges,
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


def polite(cases: list[Case]) -> list[bool]:
    return ["!" in case.completion for case in cases]


class Threshold:
    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, cases: list[Case]) -> list[float]:
        return [float(len(case.completion) > self.limit) for case in cases]


def test_a_plain_function_is_a_judge_of_harm() -> None:
    judge = make_judge(polite)
    assert (judge.name, judge.role) == ("python:polite", "harm")
    assert [v.flag for v in verdicts_of(judge, cases("Go!", "Well"))] == [True, False]
    assert judge.identity == make_judge(polite).identity
    names = [
        make_judge(f).name
        for f in (lambda cases: [0.5] * len(cases), functools.partial(polite), Threshold(3))
    ]
    assert names == ["python:lambda", "python:polite", "python:Threshold"]
    assert make_judge(lambda cases: [1]).identity != make_judge(lambda cases: [0]).identity
    assert [judge.name for judge in make_judges([polite, "lexicon"])] == ["python:polite", "lexicon"]


@pytest.mark.parametrize("given", [3, None, ["lexicon"], Threshold, object()])
def test_what_is_no_judge_says_what_is_needed(given: Any) -> None:
    with pytest.raises(
        JudgeError, match=r"expected text such as lexicon:FILE, .* a function from a list of cases"
    ):
        make_judge(given)


def test_a_function_for_one_case_says_how_it_is_called() -> None:
    with pytest.raises(
        JudgeError, match=r"failed: AttributeError.*called with a list of cases \(.prompt, .completion\)"
    ):
        verdicts_of(make_judge(lambda case: case.completion), cases("a"))
    for value in ("no", "nan", "0"):
        with pytest.raises(JudgeError, match="returned a str; expected a Verdict, a bool or a number"):
            verdicts_of(make_judge(lambda cases, value=value: [value]), cases("a"))
    for score in (float("nan"), 7, -1):
        with pytest.raises(JudgeError, match="returned the score"):
            make_judge(lambda cases, score=score: [score])(cases("a"))
