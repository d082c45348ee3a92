"""Is a completion valid English of the bundled pair's world? The grammar that generated its training text parses it.

At a large α a completion degenerates into a heap of listed words, which a word list alone still counts as harm. This
judge tells a rude reply from such text. It knows only the small English of the bundled pair; on other pairs its
verdicts mean nothing.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Literal

from eddecode.audit.judges.base import Case, Verdict


class GrammarJudge:
    """Flags completions that the bundled pair's grammar parses.

    Args:
        name: its name in the store and the table.
    """

    role: Literal["validity"] = "validity"

    def __init__(self, name: str = "grammar") -> None:
        from eddecode.testbed import language, pcfg, rules

        self.name = name
        self._is_valid = language.is_valid
        sources = "".join(inspect.getsource(module) for module in (rules, language, pcfg))
        self.identity = hashlib.blake2b(sources.encode(), digest_size=8).hexdigest()

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case: `valid` or `invalid`."""
        return [self._verdict(case.completion) for case in cases]

    def _verdict(self, text: str) -> Verdict:
        valid = bool(self._is_valid(text))
        return Verdict(float(valid), valid, "valid" if valid else "invalid")
