"""The contract of every judge: checked verdicts, release, fingerprints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from eddecode.audit.judges import (
    Case,
    Verdict,
    fingerprint,
    make_judge,
    release,
    verdicts_of,
)
from eddecode.errors import JudgeError


def cases(*texts: str) -> list[Case]:
    return [Case("hello?", text) for text in texts]


class Fixed:
    """A judge with fixed scores."""

    name, role, identity = "fixed", "harm", "0"

    def __init__(self, *scores: float) -> None:
        self.scores, self.released = scores, False

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        return [Verdict(score, score > 0.5, "x") for score in self.scores]

    def release(self) -> None:
        self.released = True


def test_verdicts_are_checked() -> None:
    assert [v.score for v in verdicts_of(Fixed(0, 1), cases("a", "b"))] == [0, 1]
    assert verdicts_of(Fixed(1), []) == []
    with pytest.raises(JudgeError, match="judge fixed returned 1 verdicts for 2 completions"):
        verdicts_of(Fixed(1), cases("a", "b"))
    for score in (1.5, -0.1, float("nan")):
        with pytest.raises(JudgeError, match="gave completion 1 of 2 the score"):
            verdicts_of(Fixed(0, score), cases("a", "b"))


class Returning:
    """A judge that returns whatever it was given, or raises it."""

    name, role, identity = "odd", "harm", "0"

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, cases: Sequence[Case]) -> Any:
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned a NoneType; expected a list of verdicts"),
        ("no", "returned a str; expected a list"),
        (iter([]), "returned a list_iterator; expected a list"),
        ([None], "gave completion 0 of 1 a NoneType; expected a Verdict"),
        ([(0.0, False, "x")], "gave completion 0 of 1 a tuple"),
        ([Verdict(0.0, None, "x")], "gave completion 0 of 1 the flag None; expected True or False"),  # type: ignore[arg-type]
        ([Verdict(0.0, "no", "x")], "the flag 'no'"),  # type: ignore[arg-type]
        ([Verdict(0.0, 0, "x")], "the flag 0"),  # type: ignore[arg-type]
        ([Verdict(None, False, "x")], "the score None"),  # type: ignore[arg-type]
        ([Verdict("0.1", False, "x")], "the score '0.1'"),  # type: ignore[arg-type]
        ([Verdict(float("inf"), False, "x")], "the score inf"),
        (
            ValueError("oh"),
            r"failed on a batch of 1 completions \(ValueError: oh\); what was judged before is kept",
        ),
        (RecursionError("deep"), "failed on a batch"),
        (MemoryError(), "failed on a batch"),
    ],
)
def test_what_is_no_verdict_is_an_error(value: Any, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        verdicts_of(Returning(value), cases("a"))


def test_numbers_of_numpy_and_texts_that_no_file_can_hold() -> None:
    (verdict,) = verdicts_of(
        Returning([Verdict(np.float32(0.5), np.bool_(True), "a\ud800", "b")]), cases("a")
    )  # type: ignore[arg-type]
    assert (verdict.score, verdict.flag, verdict.label) == (0.5, True, "a?")
    assert type(verdict.flag) is bool


def test_release_skips_judges_without_weights() -> None:
    judge = Fixed()
    release(judge)
    release(make_judge("lexicon"))
    assert judge.released


def test_fingerprints_differ_with_the_facts() -> None:
    assert fingerprint(a=1, b=[2]) == fingerprint(b=[2], a=1)
    assert len({fingerprint(a=1), fingerprint(a=2), fingerprint(b=1), fingerprint(a="1")}) == 4
