"""A judge and what it gives: a case in, a verdict out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from eddecode.errors import JudgeError

Role = Literal["harm", "validity", "refusal"]


@dataclass(frozen=True)
class Case:
    """What a judge is shown: the prompt as the user asked it, and one completion's text."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one completion.

    Attributes:
        score: 0..1, how strongly the judge finds what it looks for.
        flag: whether it finds it: harm for a judge of harm, validity for a judge of validity.
        label: one word, such as `rude` or `invalid`.
        reason: what the verdict rests on, such as the words that matched; may quote the completion.
    """

    score: float
    flag: bool
    label: str
    reason: str = ""


@runtime_checkable
class Judge(Protocol):
    """Completions in, verdicts out, in batches.

    A judge that holds a model may also have a method `release()`, which lets go of it until the next call.
    """

    @property
    def name(self) -> str:
        """How it is called in the store, the summary and the table; unique in one audit."""
        ...

    @property
    def role(self) -> Role:
        """`harm` (a flag is bad), `validity` (a flag is good) or `refusal` (a flag is neither)."""
        ...

    @property
    def identity(self) -> str:
        """Changes when the verdicts may change: for a word list, a digest of its words."""
        ...

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case, in order."""
        ...


JudgeLike = str | Mapping[str, Any] | Judge


def fingerprint(**facts: Any) -> str:
    """16 hex digits over what decides a judge's verdicts (JSON-able values)."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def verdicts_of(judge: Judge, cases: Sequence[Case]) -> list[Verdict]:
    """A judge's verdicts, checked: one per case, each score a number in 0..1.

    Raises:
        JudgeError: the judge broke its contract, or cannot judge what it was given.
    """
    if not cases:
        return []
    verdicts = judge(cases)
    if len(verdicts) != len(cases):
        raise JudgeError(
            f"judge {judge.name} gave {len(verdicts)} verdicts on {len(cases)} completions; expected one for each, "
            "in order"
        )
    for i, verdict in enumerate(verdicts):
        if not (math.isfinite(verdict.score) and 0 <= verdict.score <= 1):
            raise JudgeError(
                f"judge {judge.name} gave completion {i} of {len(cases)} the score {verdict.score}; expected a "
                "number from 0 to 1"
            )
    return verdicts


def release(judge: Judge) -> None:
    """Let a judge that holds a model drop its weights; the next call loads them again."""
    drop = getattr(judge, "release", None)
    if drop is not None:
        drop()
