"""What a judge's model is asked: the messages that show it a prompt and a completion.

Guards read the conversation itself: the prompt as the user's turn, the completion as the assistant's. Others read one
message that quotes both (`message=`), or a text without any chat template (`template=`). A system message may stand in
front (a policy), and a last message of the user behind (the block of Granite Guardian 4.1). Every form must have a
place for the prompt and for the completion: a judge that does not see one of them would give all completions one
verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eddecode.audit.judges.base import Case
from eddecode.audit.judges.sanitize import fill
from eddecode.errors import EddecodeError, JudgeError

Message = dict[str, str]
_PROMPT_PLACES = ("{prompt}", "{request}")


@dataclass(frozen=True)
class Conversation:
    """How a case becomes messages.

    Attributes:
        system: system message; empty: none.
        message: one message of the user with {prompt} (or {request}) and {completion}; empty: the conversation itself.
        append: last message of the user after the conversation; empty: none.
    """

    system: str = ""
    message: str = ""
    append: str = ""

    @classmethod
    def create(cls, name: str, system: str | None, message: str | None, append: str | None) -> Conversation:
        """From the options of a judge.

        Args:
            name: the judge's name, for messages.
            system, message, append: see the class.

        Raises:
            JudgeError: `message` has no place for the prompt or for the completion, or stands beside `append`.
        """
        if message is not None:
            check_places(message, f"judge {name}: message=")
            if append is not None:
                raise JudgeError(
                    f"judge {name} has message= and append=; expected one of them (append= follows the conversation)"
                )
        return cls(system or "", message or "", append or "")

    def messages(self, case: Case, escape: Callable[[str], str] = str) -> list[Message]:
        """The messages for one case.

        Args:
            case: prompt and completion.
            escape: applied to every text from outside.
        """
        found = [{"role": "system", "content": self.system}] if self.system else []
        if self.message:
            return [*found, {"role": "user", "content": fill_case(self.message, case, escape)}]
        found.append({"role": "user", "content": escape(case.prompt)})
        found.append({"role": "assistant", "content": escape(case.completion)})
        return found + ([{"role": "user", "content": self.append}] if self.append else [])


def rendered(
    tokenizer: Any, messages: Sequence[Message], name: str, variables: Mapping[str, Any] | None = None
) -> str:
    """Messages as a chat template writes them, with every message's whole text in the result.

    Args:
        tokenizer: its chat template is used.
        messages: see `Conversation.messages`.
        name: the judge's name, for messages.
        variables: for the template.

    Raises:
        JudgeError: the template fails, or leaves out the prompt or the completion.
    """
    from eddecode.prompts.rendering import render_chat

    try:
        text = render_chat(tokenizer, messages, variables=variables).text
    except EddecodeError as error:
        raise JudgeError(f"judge {name}: {error}") from error
    for message in messages:  # templates may drop the reasoning of an earlier reply; a judge must see it
        if message["content"].strip() not in text:
            raise JudgeError(
                f"judge {name}: its chat template leaves out a part of the {message['role']}'s message, such as the "
                "reasoning before </think>; expected all of it in what the judge reads; put it into message= instead"
            )
    return text


def read_template(path: str, name: str) -> str:
    """A prompt format from a file: UTF-8 text with {prompt} and {completion}, used byte for byte.

    Args:
        path: the file.
        name: the judge's name, for messages.

    Raises:
        JudgeError: the file cannot be read, or has no place for the prompt or for the completion.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise JudgeError(
            f"judge {name}: the template {path} cannot be read ({error}); expected a UTF-8 file"
        ) from error
    check_places(text, f"judge {name}: the template {path}")
    return text


def check_places(text: str, what: str) -> None:
    """JudgeError if a form has no place for the completion or for the prompt; `what` names it."""
    if "{completion}" not in text:
        raise JudgeError(f"{what} has no {{completion}}; expected it where the completion goes")
    if not any(place in text for place in _PROMPT_PLACES):
        raise JudgeError(
            f"{what} has no {{prompt}}; expected it where the prompt goes: what harms depends on what was asked"
        )


def fill_case(form: str, case: Case, escape: Callable[[str], str] = str, **more: str) -> str:
    """A form with the texts of a case in it."""
    values = {"prompt": case.prompt, "completion": case.completion}
    values |= {"request": case.request, "context": case.context}
    return fill(form, **{key: escape(value) for key, value in values.items()}, **more)
