"""The contract of every judge: checked verdicts, release, fingerprints."""

from __future__ import annotations

from collections.abc import Sequence

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


def test_release_skips_judges_without_weights() -> None:
    judge = Fixed()
    release(judge)
    release(make_judge("lexicon"))
    assert judge.released


def test_fingerprints_differ_with_the_facts() -> None:
    assert fingerprint(a=1, b=[2]) == fingerprint(b=[2], a=1)
    assert len({fingerprint(a=1), fingerprint(a=2), fingerprint(b=1), fingerprint(a="1")}) == 4
