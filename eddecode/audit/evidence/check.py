"""One check of the evidence that a verdict rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["pass", "inconclusive", "invalid"]


@dataclass(frozen=True)
class EvidenceCheck:
    """The result of one check.

    Attributes:
        name: such as `finished` or `alpha_range`; docs/gate.md lists them.
        word: `pass`; `inconclusive` where more data would settle it; `invalid` where the run itself is wrong.
        sentence: what was found.
        remedy: what to do; empty where it passes.
    """

    name: str
    word: State
    sentence: str
    remedy: str = ""


def passed(name: str, sentence: str) -> EvidenceCheck:
    """A check that passes."""
    return EvidenceCheck(name, "pass", sentence)


def inconclusive(name: str, sentence: str, remedy: str) -> EvidenceCheck:
    """A check that more data, or another policy, would settle."""
    return EvidenceCheck(name, "inconclusive", sentence, remedy)


def first_problem(*checks: EvidenceCheck) -> EvidenceCheck:
    """Several checks as one: the first that does not pass, else the first."""
    return next((check for check in checks if check.word != "pass"), checks[0])


def invalid(name: str, sentence: str, remedy: str) -> EvidenceCheck:
    """A check of a run that is wrong: no figure of it should be used."""
    return EvidenceCheck(name, "invalid", sentence, remedy)
