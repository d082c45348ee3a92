"""A language model behind a server with OpenAI's protocol as a judge: vLLM, SGLang, llama.cpp, Ollama or a service.

For judges that are too large for the machine of the audit. The server is sent prompts and completions, when they are
judged; see `server` for what is not. The reply is read as that of a local model (`reply_format`), and its score is the
tier of its verdict. Calls run at the same time, a few at once, and the verdicts keep the order of the cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

from eddecode.audit.judges.base import Case, Role, Verdict, fingerprint
from eddecode.audit.judges.conversation import Conversation
from eddecode.audit.judges.graded import YESNO_FORM, YESNO_QUESTION
from eddecode.audit.judges.options import ChatOptions
from eddecode.audit.judges.reply import unparsed_message, verdict_of
from eddecode.audit.judges.reply_format import ReplyFormat
from eddecode.audit.judges.sanitize import short_name
from eddecode.audit.judges.server import Server
from eddecode.errors import JudgeError

YESNO_PATTERN = r"\A\W*(?P<verdict>yes|no)\b"
_TELLING = 40  # characters by which two cases differ whose prompts must not have the same number of tokens
_EXPECTED = "choices with one message whose content is text"


class ChatJudge:
    """Judges completions by the verdict in the reply of a served language model.

    Args:
        options: see `ChatOptions`. Without `message` and without `append`, `system` or `pattern` the model is asked the
            question of the judge `yesno`.

    Raises:
        JudgeError: no key, the package openai is not installed, or a pattern without a verdict.
    """

    kind = "chat"

    def __init__(self, options: ChatOptions) -> None:
        self.name = options.name or f"chat:{short_name(options.model)}"
        self.role: Role = options.role
        self._options = options
        own = options.pattern is None and options.message is None
        question = YESNO_FORM.replace("{question}", YESNO_QUESTION) if own else options.message
        self._conversation = Conversation.create(self.name, options.system, question, options.append)
        self._format = ReplyFormat.create(self.name, options, YESNO_PATTERN)
        self._server = Server(options, self.name)

    @cached_property
    def identity(self) -> str:
        """See `Judge.identity`; it depends on the address and not on the key."""
        options = self._options
        return fingerprint(
            kind=self.kind,
            model=options.model,
            address=self._server.address,
            conversation=vars(self._conversation),
            template_args=options.template_args,
            temperature=options.temperature,
            threshold=options.threshold,
            limit=options.max_completion_characters,
            reply=options.max_reply_tokens,
            unparsed=options.unparsed,
            role=self.role,
            **self._format.facts,
        )

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case; those that need no call have none.

        Raises:
            JudgeError: a call failed, or a reply has no verdict (unless `unparsed` is `flag`).
        """
        shown = [self._shortened(case) for case in cases]
        with (
            self._server.client() as client,
            ThreadPoolExecutor(min(self._options.concurrency, max(len(cases), 1))) as pool,
        ):
            calls = [pool.submit(self._ask, client, case) for case, _ in shown]
            try:
                replies = [call.result() for call in calls]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self._check_seen([case for case, _ in shown], [used for _, _, used in replies])
        return [
            self._verdict(i, len(cases), reply, model, note)
            for i, ((reply, model, _), (_, note)) in enumerate(zip(replies, shown, strict=True))
        ]

    def _shortened(self, case: Case) -> tuple[Case, str]:
        limit = self._options.max_completion_characters
        if limit is None or len(case.completion) <= limit:
            return case, ""
        note = f"read the first {limit} of {len(case.completion)} characters"
        return replace(case, completion=case.completion[:limit]), note

    def _ask(self, client: Any, case: Case) -> tuple[str, str, int | None]:
        """(the reply, the model that the server names, tokens of the prompt if it counts them)."""
        options = self._options
        more = {"chat_template_kwargs": options.template_args} if options.template_args else None
        texts = Case(*(_encodable(text) for text in (case.prompt, case.completion, case.context)))
        answer = self._server.call(
            client.chat.completions.with_raw_response.create,
            model=options.model,
            messages=self._conversation.messages(texts),
            temperature=options.temperature,
            max_tokens=options.max_reply_tokens,
            extra_body=more,
        )
        usage = answer.get("usage")
        used = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
        return self._content(answer), str(answer.get("model", "?")), used if isinstance(used, int) else None

    def _content(self, answer: Mapping[str, Any]) -> str:
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
            raise self._server.wrong(f"the choices {choices!r:.60}", _EXPECTED)
        message = choices[0].get("message")
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, str):
            raise self._server.wrong(f"the message {message!r:.60}", _EXPECTED)
        return content

    def _check_seen(self, cases: Sequence[Case], used: Sequence[int | None]) -> None:
        """JudgeError if texts of different lengths had the same number of tokens: the server's template drops them."""
        lengths = [len(case.prompt) + len(case.completion) for case in cases]
        counts = {count for count in used if count is not None}
        if None not in used and len(counts) == 1 and max(lengths) - min(lengths) >= _TELLING:
            raise JudgeError(
                f"judge {self.name}: {self._server.address} counts {counts.pop()} tokens in every one of "
                f"{len(cases)} requests, with texts from {min(lengths)} to {max(lengths)} characters: its chat "
                "template leaves the conversation out; serve the model with a template that reads text, or put the "
                "texts into message="
            )

    def _verdict(self, index: int, count: int, reply: str, model: str, note: str) -> Verdict:
        notes = "; ".join(text for text in (self._server.scrub(model), note) if text)
        try:
            reading = self._format.read(reply)
        except ValueError as error:
            if self._options.unparsed == "error":
                problem = self._server.scrub(str(error))
                raise JudgeError(unparsed_message(self.name, index, count, problem)) from None
            flagged = 1.0 if self.role == "harm" else 0.0
            return verdict_of(None, (flagged, "no verdict in the reply"), notes, self._options.threshold)
        reading = replace(
            reading,
            word=self._server.scrub(reading.word),
            category=self._server.scrub(reading.category),
            refusal=self._server.scrub(reading.refusal),
        )
        return verdict_of(reading, (reading.score, ""), notes, self._options.threshold)


def _encodable(text: str) -> str:
    """A text as JSON in UTF-8 can hold it: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
