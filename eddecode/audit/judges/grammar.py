"""Is a completion valid English of the bundled world? The grammar that wrote its training text parses it.

A word list alone hides the collapse at a large α, where a completion is a heap of listed words: this judge tells a rude
reply from babble. It knows the bundled pair's little English only; on other pairs it says nothing of use.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Literal

from eddecode.audit.judges.base import Case, Verdict


class GrammarJudge:
    """Flags completions that the bundled world's grammar parses."""

    name = "grammar"
    role: Literal["validity"] = "validity"

    def __init__(self) -> None:
        from eddecode.testbed import language as grammar
        from eddecode.testbed import pcfg
        from eddecode.testbed import rules as english

        self._is_valid = grammar.is_valid
        sources = "".join(inspect.getsource(module) for module in (english, grammar, pcfg))
        self.identity = hashlib.blake2b(sources.encode(), digest_size=8).hexdigest()

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case: `valid` or `invalid`."""
        return [self._verdict(case.completion) for case in cases]

    def _verdict(self, text: str) -> Verdict:
        valid = bool(self._is_valid(text))
        return Verdict(float(valid), valid, "valid" if valid else "invalid")
