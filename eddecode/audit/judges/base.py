"""What every judge has in common: the case it is given, the verdict it returns, and the protocol between them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol, runtime_checkable

from eddecode.errors import EddecodeError, JudgeError

Role = Literal["harm", "validity", "refusal"]
CONTEXT_SEPARATOR = "\n\n---\n\n"  # between a prompt's context and what is asked, as HarmBench writes it


@dataclass(frozen=True)
class Case:
    """What a judge is given.

    Attributes:
        prompt: as the user wrote it, with its context in front where it has one.
        completion: the text of one completion.
        context: the text that the prompt is about (HarmBench's ContextString); empty where there is none.
    """

    prompt: str
    completion: str
    context: str = ""

    @property
    def request(self) -> str:
        """The prompt without its context."""
        return self.prompt.removeprefix(self.context + CONTEXT_SEPARATOR) if self.context else self.prompt


@dataclass(frozen=True)
class Verdict:
    """The result for one completion.

    Attributes:
        score: 0..1, how strongly the property that the judge looks for is present.
        flag: whether it is present: harm for a judge of harm, validity for a judge of validity.
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

    A judge that holds a model may also have a method `release()`, which frees the weights until the next call.
    """

    @property
    def name(self) -> str:
        """Its name in the store, the summary and the table; unique in one audit."""
        ...

    @property
    def role(self) -> Role:
        """`harm` (a flag is bad), `validity` (a flag is good) or `refusal` (a flag is neither)."""
        ...

    @property
    def identity(self) -> str:
        """Changes whenever the verdicts may change: for a word list, a digest of its words."""
        ...

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case, in order."""
        ...


KINDS = (
    *("lexicon", "grammar", "refusal", "not-refused", "classifier", "guard", "yesno", "rubric", "reply"),
    *("chat", "moderation", "python"),
)  # of judges; `registry` builds them
OWN_KIND = "python"  # of a judge that is an object or a function of the user's


def kind_of(judge: Judge) -> str:
    """The kind of a judge: `lexicon`, `guard` …, or `python` for an object of the user's, whatever it is called."""
    return str(getattr(judge, "kind", "") or OWN_KIND)


JudgeLike = str | Mapping[str, Any] | Judge | Callable[[list[Case]], Iterable[Any]]


def fingerprint(**facts: Any) -> str:
    """16 hex digits over everything that decides a judge's verdicts (values that JSON can hold)."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def verdicts_of(judge: Judge, cases: Sequence[Case]) -> list[Verdict]:
    """A judge's verdicts, checked: one per case, each a flag and a score in 0..1.

    Raises:
        JudgeError: the judge failed, returned something else, or cannot judge these cases.
    """
    if not cases:
        return []
    try:
        verdicts = judge(cases)
    except EddecodeError:
        raise
    except Exception as error:  # a judge of the user's can raise anything, and a model can run out of memory
        raise JudgeError(
            f"judge {judge.name} failed on a batch of {len(cases)} completions ({type(error).__name__}: {error}); "
            "what was judged before is kept"
        ) from error
    if not isinstance(verdicts, list | tuple):
        raise JudgeError(
            f"judge {judge.name} returned a {type(verdicts).__name__}; expected a list of verdicts, one for each of "
            f"the {len(cases)} completions, in order"
        )
    if len(verdicts) != len(cases):
        raise JudgeError(
            f"judge {judge.name} returned {len(verdicts)} verdicts for {len(cases)} completions; expected one for "
            "each, in order"
        )
    return [_checked(judge.name, f"{i} of {len(cases)}", verdict) for i, verdict in enumerate(verdicts)]


def _checked(name: str, which: str, verdict: Any) -> Verdict:
    """A verdict with values of the right types. What has no flag is no verdict: it must not count as harmless."""
    if not isinstance(verdict, Verdict):
        raise JudgeError(
            f"judge {name} gave completion {which} a {type(verdict).__name__}; expected a Verdict(score, flag, label)"
        )
    if type(verdict.flag).__name__ not in ("bool", "bool_"):  # numpy's is bool_, or bool
        raise JudgeError(
            f"judge {name} gave completion {which} the flag {verdict.flag!r:.40}; expected True or False"
        )
    score = verdict.score
    number = isinstance(score, Real) and not isinstance(score, bool)
    if not (number and math.isfinite(score) and 0 <= score <= 1):
        raise JudgeError(
            f"judge {name} gave completion {which} the score {score!r:.40}; expected a number from 0 to 1"
        )
    texts = [str(text).encode("utf-8", "replace").decode("utf-8") for text in (verdict.label, verdict.reason)]
    return Verdict(float(score), bool(verdict.flag), *texts)


def release(judge: Judge) -> None:
    """Free the weights of a judge that holds a model; the next call loads them again."""
    free = getattr(judge, "release", None)
    if free is not None:
        free()


@contextmanager
def errors_name_judge(name: str) -> Iterator[None]:
    """Turn an error of loading into a `JudgeError` that names the judge."""
    try:
        yield
    except EddecodeError as error:
        raise JudgeError(f"judge {name}: {error}") from error
