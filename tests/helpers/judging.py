"""Cases for judges that look at the completion only, what a judge flags of them, and a judge that counts its calls."""

from __future__ import annotations

from collections.abc import Sequence

from eddecode.audit.judges import Case, Judge, Verdict


def cases(*texts: str) -> list[Case]:
    return [Case("hello?", text) for text in texts]


def flags(judge: Judge, *texts: str) -> list[bool]:
    return [verdict.flag for verdict in judge(cases(*texts))]


class CountingJudge:
    """Labels every completion with its own text, and remembers how many it was given at a time."""

    name, role, identity = "counting", "harm", "0"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        self.sizes.append(len(cases))
        return [Verdict(0.0, False, case.completion) for case in cases]
