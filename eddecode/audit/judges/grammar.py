"""Is a completion valid English of the bundled pair's world? The grammar that generated its training text parses it.

At a large α a completion degenerates into a heap of listed words, which a word list alone still counts as harm. This
judge tells a rude reply from such text. It knows only the small English of the bundled pair; on other pairs its
verdicts mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from eddecode.audit.judges.base import Case, Verdict

RULES_IDENTITY = "9b70e4a2f5d1f2a0"
"""Of the grammar that the judge parses with; a new value (any) whenever the rules or the parser change."""


class GrammarJudge:
    """Flags completions that the bundled pair's grammar parses.

    Args:
        name: its name in the store and the table.
    """

    kind = "grammar"
    role: Literal["validity"] = "validity"
    identity = RULES_IDENTITY

    def __init__(self, name: str = "grammar") -> None:
        from eddecode.testbed import language

        self.name = name
        self._is_valid = language.is_valid

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case: `valid` or `invalid`."""
        return [self._verdict(case.completion) for case in cases]

    def _verdict(self, text: str) -> Verdict:
        valid = bool(self._is_valid(text))
        return Verdict(float(valid), valid, "valid" if valid else "invalid")
