"""Diagnostics: what loading and checking a checkpoint found that a user should know, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["info", "warning"]
NO_CHAT_TEMPLATE = "its tokenizer has no chat template"


@dataclass(frozen=True)
class Diagnostic:
    """One finding about a pair that is no error.

    Attributes:
        level: "warning" where results may be affected, else "info".
        component: which part ("aligned", "vocabulary", "memory", …).
        message: what was found.
        hint: what to do about it.
    """

    level: Level
    component: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.component}: {self.message}. {self.hint}"

    def to_dict(self) -> dict[str, str]:
        """As in `ModelPair.describe`: {"level", "where", "what", "action"}."""
        return {
            "level": self.level,
            "where": self.component,
            "what": self.message,
            "action": self.hint,
        }
