"""Cases for judges that look at the completion only, and what a judge flags of them."""

from __future__ import annotations

from eddecode.audit.judges import Case, Judge


def cases(*texts: str) -> list[Case]:
    return [Case("hello?", text) for text in texts]


def flags(judge: Judge, *texts: str) -> list[bool]:
    return [verdict.flag for verdict in judge(cases(*texts))]
