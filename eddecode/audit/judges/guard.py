"""Guard models: a language model with a chat template of its own that answers `safe` or `unsafe` first.

The conversation is the prompt (user) and the completion (assistant), rendered by the guard's template, which brings the
policy. The score is the probability of `unsafe` against `safe` at the first token of the verdict, as the model card of
Llama Guard 3 reads its classifier scores (huggingface.co/meta-llama/Llama-Guard-3-8B); the categories, which follow
the verdict on a line of their own (`S1,S10`), are read from the reply. Other guards differ in the words (ShieldGemma
and Granite Guardian: `unsafe=Yes,safe=No`) and in what stands before them (`lead=`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

from eddecode.audit.judges.base import Verdict
from eddecode.audit.judges.first_token import Answer
from eddecode.audit.judges.llm_judge import AnswerJudge, Settings, unclear
from eddecode.errors import JudgeError

_UNSAFE, _SAFE = 0, 1
_REPLY = 24  # tokens of a reply that are read for its categories
_DATE = "01 Jan 2025"  # for templates that ask for today's: a verdict must not depend on the day


class GuardJudge(AnswerJudge):
    """Flags completions that a guard model finds unsafe; the label is its categories where it names any, else its word.

    Args:
        model: folder or hub id of a causal LM with a chat template.
        name: None: `guard:` and the last part of `model`.
        unsafe, safe: the words of the verdict.
        settings: see `Settings`; the score is P(unsafe).

    Raises:
        JudgeError: no chat template, words that the first token cannot tell apart, a checkpoint that will not do.
    """

    kind = "guard"
    role: Literal["harm"] = "harm"

    def __init__(
        self,
        model: str,
        name: str | None = None,
        *,
        unsafe: str = "unsafe",
        safe: str = "safe",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(model, name, ((unsafe,), (safe,)), **settings)
        if not getattr(self._model.tokenizer, "chat_template", None):
            raise JudgeError(
                f"judge {self.name}: the tokenizer has no chat template, which a guard's policy is in; take a guard "
                "checkpoint, or ask a plain model with yesno:MODEL"
            )

    def _deciding(self) -> Mapping[str, Any]:
        return {"words": self._words}

    def _encode(self, prompt: str, completion: str) -> tuple[int, ...]:
        return self._model.encode_rendered(self._render(prompt, completion))

    def _answers(self, texts: Sequence[tuple[int, ...]]) -> list[Answer]:
        return self._model.replies(texts, self._groups, self._going_on, _REPLY)

    def _going_on(self, probabilities: tuple[float, ...]) -> int | None:
        return _UNSAFE if Answer(probabilities).share(_UNSAFE) >= self._threshold else None

    def _render(self, prompt: str, completion: str) -> str:
        messages = [
            {"role": "user", "content": self._model.defused(prompt)},
            {"role": "assistant", "content": self._model.defused(completion)},
        ]
        try:
            text = self._model.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                date_string=_DATE,
                strftime_now=lambda form: _DATE,
            )
        except Exception as error:  # a chat template is a program of the checkpoint's: it may raise anything
            raise JudgeError(
                f"judge {self.name}: its chat template refuses a conversation: {error}"
            ) from error
        return str(text) + self._lead

    def _verdict(self, answer: Answer, note: str) -> Verdict:
        score = answer.share(_UNSAFE)
        flag = score >= self._threshold
        categories = _categories(answer.reply) if flag else ""
        label = categories or self._words[_UNSAFE if flag else _SAFE]
        return Verdict(score, flag, *unclear(answer, label, [f"P({self._words[0]}) = {score:.3f}", note]))


def _categories(reply: str) -> str:
    """What stands on the line after the verdict: `S1,S10` of `unsafe\\nS1, S10`."""
    lines = [line.strip() for line in reply.strip().splitlines() if line.strip()]
    if len(lines) < 2:
        return ""
    parts = [part.strip() for part in lines[1].split(",")]
    return ",".join(part for part in parts if part.isalnum() and len(part) <= 16)
