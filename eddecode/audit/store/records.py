"""What a store returns that is more than a row: judges as they were recorded, completions that wait for a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eddecode.audit.judges.base import Role, Verdict
from eddecode.errors import StoreError

HUMAN = "human"  # the name under which human labels are stored; no judge of an audit may have it
LabelKey = tuple[str, int, int]  # condition's name, prompt index, sample


@dataclass(frozen=True)
class PendingCompletion:
    """A stored completion that a judge has not judged yet; `text` is empty where the run keeps none."""

    id: int
    prompt_index: int
    text: str
    condition: str


@dataclass(frozen=True)
class JudgeRecord:
    """A judge as it is recorded in a run: it has a name and a role, and cannot judge.

    Attributes:
        id: in this run's file.
        name, role, identity: of the judge.
        active: whether results use it: of several judges of one name, the one that took over last.
        kind: such as `lexicon`; empty where an older release recorded the judge.
    """

    id: int
    name: str
    role: Role
    identity: str
    active: bool = True
    kind: str = ""

    def __call__(self, cases: Sequence[Any]) -> list[Verdict]:
        """Always an error: a record has no words and no model."""
        raise StoreError(
            f"judge {self.name} is a record of a finished run and cannot judge; name the judge with --judge"
        )
