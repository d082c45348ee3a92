"""What loading and checking a checkpoint has to tell the user, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Note:
    """Something that a user should know about a pair: how serious, which part, what was found, what to do."""

    level: Literal["info", "warning"]
    where: str
    what: str
    action: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.action}"
