"""Guard models: language models that answer `safe` or `unsafe` first, and whose chat template holds the policy.

The guard's template renders a conversation of the prompt (user) and the completion (assistant). Templates differ in
what they take: a string or a list of parts (Llama Guard 3 1B), arguments (the guideline of ShieldGemma), a system
message, a last block of the user. The rendering is compared with what went in: a guard that is shown an empty
conversation would find every completion safe. The score is P(unsafe) / (P(unsafe) + P(safe)) at the first token of the
verdict, as the model card of Llama Guard 3 computes its classifier scores
(huggingface.co/meta-llama/Llama-Guard-3-8B). The categories are on the line after the verdict (`S1,S10`). Other guards
use other words (ShieldGemma and Granite Guardian: `unsafe=Yes,safe=No`) or have text before the verdict (`lead=`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from eddecode.audit.judges.base import Case, Verdict
from eddecode.audit.judges.conversation import Conversation, rendered
from eddecode.audit.judges.first_token import Answer
from eddecode.audit.judges.llm_judge import FirstTokenJudge, label_or_unclear
from eddecode.audit.judges.options import GuardOptions
from eddecode.errors import JudgeError

_UNSAFE, _SAFE = 0, 1
_REPLY_TOKENS = 24  # of a reply after its first token; the categories are expected in them


class GuardJudge(FirstTokenJudge):
    """Flags completions that a guard model finds unsafe; the label is the categories, or the verdict without any.

    Args:
        options: see `GuardOptions`.

    Raises:
        JudgeError: no chat template, or one that leaves out the prompt or the completion; words with the same first
            token; a checkpoint that cannot be used.
    """

    kind = "guard"
    role: Literal["harm"] = "harm"
    _policy = ""  # of those given, the one that is asked about now

    def __init__(self, options: GuardOptions) -> None:
        super().__init__(options, (options.unsafe, options.safe))
        if not getattr(self._model.tokenizer, "chat_template", None):
            raise JudgeError(
                f"judge {self.name}: the tokenizer has no chat template, and a guard's policy is in its template; use "
                "a guard checkpoint, or put a question to a plain model with yesno:MODEL"
            )
        self._conversation = Conversation.create(self.name, options.system, None, options.append)
        self._arguments: Mapping[str, Any] = options.template_args
        self._policies = options.policies or {}
        for name in self._policies or [""]:  # a template that drops the conversation is found here
            self.text("a prompt", "a completion", name)

    def _identity_facts(self) -> Mapping[str, Any]:
        added = {
            "system": self._conversation.system,
            "append": self._conversation.append,
            "template_args": self._arguments,
            "policies": self._policies,
        }
        return {"words": self._words, **{name: value for name, value in added.items() if value}}

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case; of several policies, the verdict of the one with the highest score."""
        if not self._policies:
            return super().__call__(cases)
        found = []
        for policy in self._policies:
            self._policy = policy
            found.append([_under(policy, verdict) for verdict in super().__call__(cases)])
        return [max(of_case, key=lambda verdict: verdict.score) for of_case in zip(*found, strict=True)]

    def _encode(self, case: Case) -> tuple[int, ...]:
        return self._model.encode_rendered(self.text(case.prompt, case.completion, self._policy))

    def text(self, prompt: str, completion: str, policy: str = "") -> str:
        """The model's input: the conversation as the chat template renders it.

        Raises:
            JudgeError: the template fails, or leaves out the prompt or the completion.
        """
        messages = self._conversation.messages(Case(prompt, completion), self._model.escape)
        arguments = {**self._arguments, **self._policies.get(policy, {})}
        return rendered(self._model.tokenizer, messages, self.name, arguments) + self._answer_prefix

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


def _under(policy: str, verdict: Verdict) -> Verdict:
    """A verdict with the policy that it is about, in its label where it flags."""
    label = policy if verdict.flag and verdict.label != "unclear" else verdict.label
    return replace(verdict, label=label, reason=f"{policy}: {verdict.reason}")


def _categories(reply: str) -> str:
    """The categories on the line after the verdict: `S1,S10` of `unsafe\\nS1, S10`."""
    lines = [line.strip() for line in reply.strip().splitlines() if line.strip()]
    if len(lines) < 2:
        return ""
    parts = [part.strip() for part in lines[1].split(",")]
    return ",".join(part for part in parts if part.isalnum() and len(part) <= 16)
