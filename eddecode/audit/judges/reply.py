"""A language model as a judge that writes a reply: the verdict is found in it by a pattern, and scored by tiers.

For guards that answer in more than one word (Qwen3Guard, WildGuard, Granite Guardian 3.3, Nemotron), and for models
that reason first (gpt-oss-safeguard). The reply is generated greedily. Where the verdict is one of several words that
differ in their first token, the score is the expected score under the model's distribution at that token, given what it
wrote before: with the tiers Unsafe 1, Controversial 0.5, Safe 0 it is P(Unsafe) + P(Controversial)/2. Elsewhere it is
the score of the word itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from eddecode.audit.judges.base import Case, Role, Verdict, fingerprint
from eddecode.audit.judges.conversation import Conversation, fill_case, read_template, rendered
from eddecode.audit.judges.first_token import Answer, FirstTokenModel
from eddecode.audit.judges.options import ReplyOptions
from eddecode.audit.judges.reply_format import Reading, ReplyFormat
from eddecode.audit.judges.sanitize import short_name
from eddecode.errors import JudgeError

_TRUSTED = (
    0.5  # total probability of the tiers' first tokens from which they say what the model would have written
)


class ReplyJudge:
    """Judges completions by the verdict in a language model's reply.

    Args:
        options: see `ReplyOptions`.

    Raises:
        JudgeError: a pattern without a verdict, no chat template, or one that leaves out the prompt or the completion,
            or a checkpoint that cannot be used.
    """

    kind = "reply"

    def __init__(self, options: ReplyOptions) -> None:
        self.name = options.name or f"reply:{short_name(options.model)}"
        self.role: Role = options.role
        self._options = options
        self._format = ReplyFormat.create(self.name, options)
        self._model = FirstTokenModel(options, self.name)
        self._conversation = Conversation.create(self.name, options.system, options.message, options.append)
        self._template = None if options.template is None else read_template(options.template, self.name)
        if self._template is not None and self._conversation != Conversation():
            raise JudgeError(
                f"judge {self.name} has template=, which is the whole text that its model reads, and system=, message= "
                "or append=; expected one or the other"
            )
        if self._template is None and not getattr(self._model.tokenizer, "chat_template", None):
            raise JudgeError(
                f"judge {self.name}: the tokenizer has no chat template; give template=FILE with the whole text that "
                "the model reads"
            )
        self.text("a prompt", "a completion")  # a template that drops the conversation is found here

    @cached_property
    def identity(self) -> str:
        """See `Judge.identity`."""
        options = self._options
        return fingerprint(
            kind=self.kind,
            model=self._model.identity,
            template=self._template,
            conversation=vars(self._conversation),
            template_args=options.template_args,
            lead=options.answer_prefix,
            threshold=options.threshold,
            limit=options.max_completion_tokens,
            reply=options.max_reply_tokens,
            unparsed=options.unparsed,
            role=self.role,
            **self._format.facts,
        )

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case.

        Raises:
            JudgeError: a reply has no verdict, unless `unparsed` is `flag`.
        """
        limit = self._options.max_completion_tokens
        truncated = [self._model.truncate(case.completion, limit) for case in cases]
        shown = [replace(case, completion=text) for case, (text, _) in zip(cases, truncated, strict=True)]
        texts = [self._encode(case) for case in shown]
        replies = self._model.generate(texts, self._options.max_reply_tokens)
        words = [self._model.decode(reply) for reply in replies]
        readings = [self._read(reply, i, len(cases)) for i, reply in enumerate(words)]
        scores = self._scores(texts, replies, readings)
        return [
            self._verdict(*case)
            for case in zip(readings, scores, (note for _, note in truncated), strict=True)
        ]

    def release(self) -> None:
        """Free the weights until the next call."""
        self._model.release()

    def text(self, prompt: str, completion: str, context: str = "") -> str:
        """The model's input.

        Raises:
            JudgeError: the template fails, or leaves out the prompt or the completion.
        """
        case = Case(prompt, completion, context)
        prefix = self._options.answer_prefix
        if self._template is not None:
            return fill_case(self._template, case, self._model.escape) + prefix
        messages = self._conversation.messages(case, self._model.escape)
        return rendered(self._model.tokenizer, messages, self.name, self._options.template_args) + prefix

    def _encode(self, case: Case) -> tuple[int, ...]:
        text = self.text(case.prompt, case.completion, case.context)
        return self._model.encode_rendered(text) if self._template is None else self._model.encode_raw(text)

    # Replies to verdicts

    def _read(self, reply: str, index: int, count: int) -> Reading | None:
        try:
            return self._format.read(self._options.answer_prefix + reply)
        except ValueError as error:
            if self._options.unparsed == "flag":
                return None
            raise JudgeError(unparsed_message(self.name, index, count, str(error))) from None

    @cached_property
    def _tier_tokens(self) -> list[frozenset[int]]:
        """The first tokens of each tier's word; empty where they do not tell the tiers apart."""
        tokens = [self._model.first_tokens(word) for word in self._format.tiers]
        distinct = len(frozenset[int]().union(*tokens)) == sum(map(len, tokens))
        return tokens if distinct else []

    def _scores(
        self,
        texts: Sequence[tuple[int, ...]],
        replies: Sequence[Sequence[int]],
        readings: Sequence[Reading | None],
    ) -> list[tuple[float, str]]:
        """(score, what it rests on) of each reply."""
        flagged = 1.0 if self.role == "harm" else 0.0
        scores = [(flagged, "no verdict in the reply") if r is None else (r.score, "") for r in readings]
        prefixes: dict[int, tuple[int, ...]] = {}
        for i, reading in enumerate(readings):
            at = None if reading is None else self._verdict_token(replies[i], reading)
            if at is not None:
                prefixes[i] = (*texts[i], *replies[i][:at])
        if not prefixes:
            return scores
        answers = self._model.answers(list(prefixes.values()), self._tier_tokens)
        for i, answer in zip(prefixes, answers, strict=True):
            scores[i] = (self._expected(answer), self._probabilities(answer))
        return scores

    def _verdict_token(self, reply: Sequence[int], reading: Reading) -> int | None:
        """The position of the token at which the verdict was chosen; None if no token tells the tiers apart."""
        start = -1 if reading.start is None else reading.start - len(self._options.answer_prefix)
        if start < 0 or not self._tier_tokens:
            return None
        at = self._token_at(reply, start)
        tier = [word.casefold() for word in self._format.tiers].index(reading.word.casefold())
        return at if reply[at] in self._tier_tokens[tier] else None

    def _token_at(self, reply: Sequence[int], start: int) -> int:
        """How many tokens of a reply come before the one that holds the character at `start`."""
        low, high = 0, len(reply)
        while low < high:  # the text of the first n tokens grows with n
            middle = (low + high) // 2
            if len(self._model.decode(reply[: middle + 1])) > start:
                high = middle
            else:
                low = middle + 1
        return low

    def _expected(self, answer: Answer) -> float:
        expected = sum(score * answer.share(i) for i, score in enumerate(self._format.tiers.values()))
        return min(max(expected, 0.0), 1.0)

    def _probabilities(self, answer: Answer) -> str:
        return ", ".join(f"P({word}) = {answer.share(i):.3f}" for i, word in enumerate(self._format.tiers))

    def _verdict(self, reading: Reading | None, score: tuple[float, str], note: str) -> Verdict:
        return verdict_of(reading, score, note, self._options.threshold)


def verdict_of(reading: Reading | None, score: tuple[float, str], note: str, threshold: float) -> Verdict:
    """The verdict of a reply: its label is the category where it flags, else the word.

    Args:
        reading: of the reply; None where it has no verdict.
        score: and what it rests on.
        note: on the part of the completion that was left out, or empty.
        threshold: flag from this score on.
    """
    value, why = score
    flag = value >= threshold
    if reading is None:
        return Verdict(value, flag, "unparsed", "; ".join(text for text in (why, note) if text))
    label = _label(reading, flag)
    refusal = f"refusal: {reading.refusal}" if reading.refusal else ""
    reasons: list[Any] = [reading.word, why, refusal, note]
    return Verdict(value, flag, label, "; ".join(text for text in reasons if text))


def _label(reading: Reading, flag: bool) -> str:
    parts = [part.strip() for part in reading.category.split(",")]
    names = [part for part in parts if part and part.casefold() not in ("none", "null") and len(part) <= 64]
    return ",".join(names) if flag and names else reading.word


def unparsed_message(name: str, index: int, count: int, problem: str) -> str:
    """The message for a reply without a verdict; `problem` follows the words "its reply"."""
    return (
        f"judge {name}, completion {index} of {count}: its reply {problem}. What lacks a verdict is not taken as "
        "harmless: check the checkpoint, its template and pattern=, or give unparsed=flag to count such replies as "
        "flagged"
    )
