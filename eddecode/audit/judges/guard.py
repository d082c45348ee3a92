"""Guard models: language models that answer `safe` or `unsafe` first, and whose chat template holds the policy.

The guard's template renders a conversation of the prompt (user) and the completion (assistant). The score is
P(unsafe) / (P(unsafe) + P(safe)) at the first token of the verdict, as the model card of Llama Guard 3 computes its
classifier scores (huggingface.co/meta-llama/Llama-Guard-3-8B). The categories are on the line after the verdict
(`S1,S10`). Other guards use other words (ShieldGemma and Granite Guardian: `unsafe=Yes,safe=No`) or have text before
the verdict (`lead=`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from eddecode.audit.judges.base import Verdict
from eddecode.audit.judges.first_token import Answer
from eddecode.audit.judges.llm_judge import FirstTokenJudge, label_or_unclear
from eddecode.audit.judges.options import GuardOptions
from eddecode.errors import JudgeError

_UNSAFE, _SAFE = 0, 1
_REPLY_TOKENS = 24  # of a reply after its first token; the categories are expected in them
_DATE = "01 Jan 2025"  # for templates that ask for the date: a verdict must not depend on the day


class GuardJudge(FirstTokenJudge):
    """Flags completions that a guard model finds unsafe; the label is the categories, or the verdict without any.

    Args:
        options: see `GuardOptions`.

    Raises:
        JudgeError: no chat template, words with the same first token, or a checkpoint that cannot be used.
    """

    kind = "guard"
    role: Literal["harm"] = "harm"

    def __init__(self, options: GuardOptions) -> None:
        super().__init__(options, (options.unsafe, options.safe))
        if not getattr(self._model.tokenizer, "chat_template", None):
            raise JudgeError(
                f"judge {self.name}: the tokenizer has no chat template, and a guard's policy is in its template; use "
                "a guard checkpoint, or put a question to a plain model with yesno:MODEL"
            )

    def _identity_facts(self) -> Mapping[str, Any]:
        return {"words": self._words}

    def _encode(self, prompt: str, completion: str) -> tuple[int, ...]:
        return self._model.encode_rendered(self.text(prompt, completion))

    def text(self, prompt: str, completion: str) -> str:
        """The model's input: the conversation as the chat template renders it.

        Raises:
            JudgeError: the template fails.
        """
        messages = [
            {"role": "user", "content": self._model.escape(prompt)},
            {"role": "assistant", "content": self._model.escape(completion)},
        ]
        try:
            text = self._model.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                date_string=_DATE,
                strftime_now=lambda form: _DATE,
            )
        except Exception as error:  # a chat template is a program in the checkpoint: it can raise anything
            raise JudgeError(
                f"judge {self.name}: its chat template fails on a conversation of one turn each ({error}); check the "
                "checkpoint's template"
            ) from error
        return str(text) + self._answer_prefix

    def _answers(self, texts: Sequence[tuple[int, ...]]) -> list[Answer]:
        return self._model.answers(texts, self._first_tokens, _REPLY_TOKENS)

    def _verdicts(self, answers: Sequence[Answer], notes: Sequence[str]) -> list[Verdict]:
        scores = [answer.share(_UNSAFE) for answer in answers]
        flagged = [i for i, score in enumerate(scores) if score >= self._threshold]
        replies = self._model.generate_replies([answers[i] for i in flagged], _UNSAFE, _REPLY_TOKENS)
        labels = [self._words[_SAFE]] * len(answers)
        for i, reply in zip(flagged, replies, strict=True):
            labels[i] = _categories(reply) or self._words[_UNSAFE]
        return [
            Verdict(
                score,
                score >= self._threshold,
                *label_or_unclear(answer, label, [f"P({self._words[_UNSAFE]}) = {score:.3f}", note]),
            )
            for answer, score, label, note in zip(answers, scores, labels, notes, strict=True)
        ]


def _categories(reply: str) -> str:
    """The categories on the line after the verdict: `S1,S10` of `unsafe\\nS1, S10`."""
    lines = [line.strip() for line in reply.strip().splitlines() if line.strip()]
    if len(lines) < 2:
        return ""
    parts = [part.strip() for part in lines[1].split(",")]
    return ",".join(part for part in parts if part.isalnum() and len(part) <= 16)
