"""The common part of judges that take their verdict from the first token of a language model's answer.

A guard and a question differ in the prompt, in the words that an answer can begin with, and in the verdict that follows
from their probabilities. Shared here: the model, the words' first tokens, the limit on a completion's length, and the
check that the model answers in the expected format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from eddecode.audit.judges.base import Case, Verdict, fingerprint
from eddecode.audit.judges.first_token import Answer, FirstTokenModel
from eddecode.audit.judges.options import LanguageModelOptions
from eddecode.audit.judges.sanitize import short_name
from eddecode.errors import JudgeError

MIN_TOTAL_PROBABILITY = 0.05  # on the verdict words; below, an answer is not in the expected format
_MIN_ANSWERS = 8  # from this many answers on, it is an error if none is in the expected format


class FirstTokenJudge(ABC):
    """A judge that is a causal language model; `kind` starts its name where none is given.

    Args:
        options: see `LanguageModelOptions`.
        words: the words that an answer can begin with.

    Raises:
        JudgeError: words with the same first token, or a checkpoint that cannot be used.
    """

    kind: ClassVar[str] = ""

    def __init__(self, options: LanguageModelOptions, words: Sequence[str]) -> None:
        self.name = options.name or f"{self.kind}:{short_name(options.model)}"
        self._model = FirstTokenModel(options, self.name)
        self._words, self._threshold = tuple(words), options.threshold
        self._answer_prefix, self._limit = options.answer_prefix, options.max_completion_tokens
        self._first_tokens = [self._model.first_tokens(word) for word in words]
        self._check_distinct()

    @property
    def identity(self) -> str:
        """See `Judge.identity`."""
        return fingerprint(
            kind=self.kind,
            model=self._model.identity,
            lead=self._answer_prefix,
            threshold=self._threshold,
            limit=self._limit,
            **self._identity_facts(),
        )

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case; a blank completion that the chat template leaves out is `empty`."""
        truncated = [self._model.truncate(case.completion, self._limit) for case in cases]
        shown = [replace(case, completion=text) for case, (text, _) in zip(cases, truncated, strict=True)]
        texts = {i: self._encode_unless_blank(case) for i, case in enumerate(shown)}
        sent = {i: ids for i, ids in texts.items() if ids}
        answers = self._answers(list(sent.values())) if sent else []
        self._check_format(answers)
        verdicts = dict(zip(sent, self._verdicts(answers, [truncated[i][1] for i in sent]), strict=True))
        return [verdicts.get(i, Verdict(0.0, False, "empty", "nothing to judge")) for i in texts]

    def _encode_unless_blank(self, case: Case) -> tuple[int, ...]:
        try:
            return self._encode(case)
        except JudgeError:
            if case.completion.strip():
                raise
            return ()

    def release(self) -> None:
        """Free the weights until the next call."""
        self._model.release()

    @abstractmethod
    def _identity_facts(self) -> Mapping[str, Any]:
        """What decides the verdicts beside the model and the common options."""

    @abstractmethod
    def _encode(self, case: Case) -> tuple[int, ...]:
        """Token ids of the model's input, in which the prompt and the completion are whole."""

    def _answers(self, texts: Sequence[tuple[int, ...]]) -> list[Answer]:
        return self._model.answers(texts, self._first_tokens)

    @abstractmethod
    def _verdicts(self, answers: Sequence[Answer], notes: Sequence[str]) -> list[Verdict]:
        """A verdict per answer; notes: on the part of the completion that was left out, or empty."""

    def _check_distinct(self) -> None:
        """JudgeError if two words can begin with the same token: the first token would not tell them apart."""
        for i, word in enumerate(self._words):
            for j, other in enumerate(self._words[:i]):
                if self._first_tokens[i] & self._first_tokens[j]:
                    raise JudgeError(
                        f"judge {self.name}: {other!r} and {word!r} begin with the same token in this tokenizer, and "
                        "the verdict is read at the first; use other words, or put their common part into lead="
                    )

    def _check_format(self, answers: Sequence[Answer]) -> None:
        """JudgeError if there are many answers and none of them is in the expected format."""
        best = max((answer.total_probability for answer in answers), default=0.0)
        if len(answers) >= _MIN_ANSWERS and best < MIN_TOTAL_PROBABILITY:
            raise JudgeError(
                f"judge {self.name} answered none of {len(answers)} completions with "
                f"{' or '.join(map(repr, self._words))}: their probability together is at most {best:.2%}. Expected a "
                "model that was trained to answer so; check the checkpoint, its template, and lead= (the text before "
                "the verdict)"
            )


def label_or_unclear(answer: Answer, label: str, notes: Sequence[str]) -> tuple[str, str]:
    """(label, reason) of a verdict; the label is `unclear` where the answer is not in the expected format."""
    notes = [note for note in notes if note]
    if answer.total_probability >= MIN_TOTAL_PROBABILITY:
        return label, "; ".join(notes)
    return "unclear", "; ".join([*notes, f"only {answer.total_probability:.1%} on the verdict words"])
