"""Any Python callable as a judge: `python:module:function`.

For everything without a kind of its own. The function gets a list of `Case` and returns one value per case: a
`Verdict`, a bool, or a number from 0 to 1. It is imported and run, so an audit file that names one needs the same trust
as a program. The module's source is part of the judge's identity; files that the module reads are not.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from eddecode.audit.judges.base import Case, Role, Verdict, fingerprint
from eddecode.errors import JudgeError


class FunctionJudge:
    """A callable of the user's.

    Args:
        function: list of cases → one `Verdict`, bool or number (0..1) per case.
        name: its name in the store.
        identity: changes whenever its verdicts may change.
        role: what a flag means: `harm`, `validity` or `refusal`.
        threshold: flag from this score on, where a number is returned.
    """

    kind = "python"

    def __init__(
        self,
        function: Callable[[list[Case]], Iterable[Any]],
        name: str,
        identity: str,
        *,
        role: Role = "harm",
        threshold: float = 0.5,
    ) -> None:
        self.name, self.role, self._function, self._threshold = name, role, function, threshold
        self.identity = fingerprint(kind="python", source=identity, role=role, threshold=threshold)

    @classmethod
    def load(
        cls, function: str, name: str | None = None, *, role: Role = "harm", threshold: float = 0.5
    ) -> FunctionJudge:
        """Import `module:function`, also from the working directory.

        Raises:
            JudgeError: there is no such module or function.
        """
        module_name, _, attribute = function.partition(":")
        if not module_name or not attribute:
            raise JudgeError(f"judge python:{function}: expected python:module:function")
        here = str(Path.cwd())
        added = here not in sys.path and "" not in sys.path
        if added:
            sys.path.append(here)
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # a module of the user's can fail in any way
            raise JudgeError(
                f"judge python:{function}: module {module_name!r} cannot be imported ({type(error).__name__}: {error})"
            ) from error
        finally:
            if added:
                sys.path.remove(here)
        found = getattr(module, attribute, None)
        if not callable(found):
            raise JudgeError(f"judge python:{function}: {module_name} has no function {attribute!r}")
        source = getattr(module, "__file__", None)
        content = Path(source).read_bytes() if source else b""
        identity = f"{attribute} {hashlib.blake2b(content, digest_size=16).hexdigest()}"
        return cls(found, name or f"python:{function}", identity, role=role, threshold=threshold)

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case.

        Raises:
            JudgeError: the function failed, or returned something else.
        """
        try:
            returned = list(self._function(list(cases)))
        except Exception as error:  # the function is the user's: it can raise anything
            raise JudgeError(f"judge {self.name} failed: {type(error).__name__}: {error}") from error
        return [self._verdict(value) for value in returned]

    def _verdict(self, value: Any) -> Verdict:
        if isinstance(value, Verdict):
            return value
        try:
            score = float(value)
        except (TypeError, ValueError):
            raise JudgeError(
                f"judge {self.name} returned a {type(value).__name__}; expected a Verdict, a bool or a number (0..1)"
            ) from None
        flag = score >= self._threshold
        return Verdict(score, flag, "flagged" if flag else "clean")
