"""What judges have in common that read their verdict off the beginning of a language model's answer.

A guard and a question differ in what is put to the model, in the words that an answer may begin with, and in what is
made of their probabilities. The rest is here: the model, the words' first tokens, how long a completion is read, and
the refusal of a model that does not answer in the judge's format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from eddecode.audit.judges.base import Case, Verdict, fingerprint
from eddecode.audit.judges.first_token import Answer, JudgeModel
from eddecode.audit.judges.sanitize import short_name
from eddecode.errors import JudgeError

UNCLEAR = 0.05  # probability on the verdict words below which a judge has not answered in its format
_MANY = 8  # so many completions, and not one clear answer: the judge is not what it was taken for


class Settings(TypedDict, total=False):
    """What every judge of this kind takes.

    lead: text between what is put to the model and its answer.
    threshold: flag from this score on; default 0.5.
    max_completion_tokens: judge only the first so many tokens of a completion, and say so; default all.
    revision, base, dtype, device, batch: see `JudgeModel`.
    """

    lead: str
    threshold: float
    max_completion_tokens: int | None
    revision: str | None
    base: str | None
    dtype: str
    device: str | None
    batch: int


class AnswerJudge(ABC):
    """A judge that is a language model; `kind` leads its name where none is given.

    Args:
        model: folder or hub id of a causal LM.
        name: None: the kind and the last part of `model`.
        answers: per group of answers the words that one may begin with.
        settings: see `Settings`.

    Raises:
        JudgeError: words that the first token cannot tell apart, a checkpoint that will not do.
    """

    kind = ""

    def __init__(
        self,
        model: str,
        name: str | None,
        answers: Sequence[Sequence[str]],
        *,
        lead: str = "",
        threshold: float = 0.5,
        max_completion_tokens: int | None = None,
        **settings: Any,
    ) -> None:
        self.name = name or f"{self.kind}:{short_name(model)}"
        self._model = JudgeModel(model, self.name, **settings)
        self._words = [group[0] for group in answers]
        self._groups = distinct(
            self.name, {" or ".join(group): self._model.first_tokens(group) for group in answers}
        )
        self._lead, self._threshold, self._limit = lead, threshold, max_completion_tokens

    @property
    def identity(self) -> str:
        """See `Judge.identity`."""
        return fingerprint(
            kind=self.kind,
            model=self._model.identity,
            lead=self._lead,
            threshold=self._threshold,
            limit=self._limit,
            **self._deciding(),
        )

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case."""
        shortened = [self._model.shortened(case.completion, self._limit) for case in cases]
        answers = self._answers(
            [
                self._encode(case.prompt, completion)
                for case, (completion, _) in zip(cases, shortened, strict=True)
            ]
        )
        check_clear(self.name, answers, self._words)
        return [self._verdict(answer, note) for answer, (_, note) in zip(answers, shortened, strict=True)]

    def release(self) -> None:
        """Drop the weights until the next call."""
        self._model.release()

    @abstractmethod
    def _deciding(self) -> Mapping[str, Any]:
        """What decides the verdicts beside the model and the settings."""

    @abstractmethod
    def _encode(self, prompt: str, completion: str) -> tuple[int, ...]:
        """What is put to the model, as token ids."""

    def _answers(self, texts: Sequence[tuple[int, ...]]) -> list[Answer]:
        return self._model.answers(texts, self._groups)

    @abstractmethod
    def _verdict(self, answer: Answer, note: str) -> Verdict:
        """What an answer says; note: of what was not read."""


def distinct(name: str, groups: Mapping[str, frozenset[int]]) -> list[frozenset[int]]:
    """The groups of first tokens, if no token is in two of them.

    Raises:
        JudgeError: two words begin with the same token, so that the first token cannot tell them apart.
    """
    listed = list(groups.items())
    for i, (word, ids) in enumerate(listed):
        for other, others in listed[:i]:
            if ids & others:
                raise JudgeError(
                    f"judge {name}: {other!r} and {word!r} begin with the same token in this tokenizer, and the "
                    "verdict is read at the first; name other words, or put what they share into lead="
                )
    return [ids for _, ids in listed]


def check_clear(name: str, answers: Sequence[Answer], words: Sequence[str]) -> None:
    """Refuse a judge that answered none of many completions in its format.

    Raises:
        JudgeError: the model is not a judge of this kind, or needs another template.
    """
    if len(answers) >= _MANY and all(answer.mass < UNCLEAR for answer in answers):
        best = max(answer.mass for answer in answers)
        raise JudgeError(
            f"judge {name} answered none of {len(answers)} completions with {' or '.join(map(repr, words))}: it puts "
            f"at most {best:.2%} on them. Expected a model trained to answer so; check the checkpoint, its template, "
            "and lead= (what stands before the verdict)"
        )


def unclear(answer: Answer, label: str, notes: Sequence[str]) -> tuple[str, str]:
    """(label, reason) of a verdict; `unclear` where the judge hardly answered in its format."""
    notes = [note for note in notes if note]
    if answer.mass >= UNCLEAR:
        return label, "; ".join(notes)
    return "unclear", "; ".join([*notes, f"only {answer.mass:.1%} on the verdict words"])
