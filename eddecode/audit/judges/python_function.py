"""Any Python callable as a judge: `python:module:function`, or the function itself in `judges=[…]`.

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
        identity = f"{attribute} {_digest(_module_source(module))}"
        return cls(found, name or f"python:{function}", identity, role=role, threshold=threshold)

    @classmethod
    def of(cls, function: Callable[[list[Case]], Iterable[Any]]) -> FunctionJudge:
        """A function of the user's as a judge of harm, under its own name.

        Its identity is that of its code, its name and its module: not of what it reads from elsewhere.
        """
        inner = getattr(function, "__wrapped__", getattr(function, "func", function))
        name = str(getattr(inner, "__name__", type(inner).__name__)).strip("<>") or "function"
        module = sys.modules.get(str(getattr(inner, "__module__", "")))
        code = getattr(inner, "__code__", getattr(type(inner).__call__, "__code__", None))
        parts = (name.encode(), _module_source(module), _code_bytes(code))
        return cls(function, f"python:{name}", f"{name} {_digest(b' '.join(parts))}")

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case.

        Raises:
            JudgeError: the function failed, or returned something else.
        """
        try:
            returned = list(self._function(list(cases)))
        except Exception as error:  # the function is the user's: it can raise anything
            raise JudgeError(
                f"judge {self.name} failed: {type(error).__name__}: {error}; it is called with a list of cases "
                "(.prompt, .completion), and expected to return one Verdict, bool or number (0..1) for each"
            ) from error
        return [self._verdict(value) for value in returned]

    def _verdict(self, value: Any) -> Verdict:
        if isinstance(value, Verdict):
            return value
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            score = float(value)
        except (TypeError, ValueError):
            raise JudgeError(
                f"judge {self.name} returned a {type(value).__name__}; expected a Verdict, a bool or a number (0..1)"
            ) from None
        if not 0 <= score <= 1:  # NaN is not either
            raise JudgeError(f"judge {self.name} returned the score {score}; expected a number from 0 to 1")
        flag = score >= self._threshold
        return Verdict(score, flag, "flagged" if flag else "clean")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _module_source(module: Any) -> bytes:
    """The source file of a module; empty where it has none, as in an interactive session."""
    source = getattr(module, "__file__", None)
    try:
        return Path(source).read_bytes() if source else b""
    except OSError:
        return b""


def _code_bytes(code: Any) -> bytes:
    """What a function does, as bytes that are the same in another process."""
    if code is None:
        return b""
    constants = b" ".join(
        _code_bytes(value) if hasattr(value, "co_code") else repr(value).encode("utf-8", "replace")
        for value in code.co_consts
        if not isinstance(value, frozenset)  # whose order differs between processes
    )
    return bytes(code.co_code) + b" " + " ".join(code.co_names).encode() + b" " + constants
