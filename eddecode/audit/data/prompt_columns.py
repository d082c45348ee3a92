"""Which field of an entry holds the prompt, and which its category, context and id.

Benchmarks call the same thing by many names. The names are compared without case. Where one field of an entry can hold
the prompt it is taken; where several can, some pairs are known (JailbreakBench has the request in Goal and its topic in
Behavior), and all others are an error that asks for `--prompt-column`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eddecode.audit.judges.base import CONTEXT_SEPARATOR
from eddecode.errors import PromptError
from eddecode.prompts.types import as_messages

Messages = list[dict[str, str]]

PROMPT_COLUMNS = (
    *("prompt", "messages", "input", "goal", "forbidden_prompt", "behavior", "question", "user_input"),
    *("instruction", "turns", "vanilla"),
)
CATEGORY_COLUMNS = ("category", "semanticcategory", "functionalcategory", "subcategory", "type")
CONTEXT_COLUMNS = ("contextstring", "context")
ID_COLUMNS = ("id", "behaviorid", "index", "question_id", "conv_id", "prompt_id", "uid")
_CHOSEN, _REJECTED = "chosen", "rejected"  # of preference data (HH-RLHF): two dialogues with one prompt
# Fields that are taken, and the others that each may stand beside (None: any).
_WINNERS = (("prompt", None), ("messages", None), ("goal", {"behavior"}))
_TURN = re.compile(r"\s*\n\n(Human|Assistant):\s*")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_RECORD = (
    f"expected either prompt (a string) or messages (a list), one of {', '.join(PROMPT_COLUMNS[2:])}, or another name "
    "by --prompt-column"
)


@dataclass(frozen=True)
class Columns:
    """Fields that a user named; None: found by name."""

    prompt: str | None = None
    category: str | None = None


def prompt_of(place: str, value: Any, columns: Columns) -> tuple[str | Messages, dict[str, Any]]:
    """(prompt, meta) of an entry: a string, a message list, or a record.

    Args:
        place: of the entry, for messages.
        value: the entry.
        columns: the fields that a user named.

    Raises:
        PromptError: it holds no prompt, or several fields that may be it.
    """
    if not isinstance(value, Mapping):
        if (named := columns.prompt or columns.category) is not None:
            raise PromptError(
                f"{place} is a prompt by itself, without the field {named!r}; leave out the name of the column"
            )
        return _checked(place, value), {}
    record = {str(name): field for name, field in value.items()}
    names = {name.casefold().strip(): name for name in reversed(record)}
    column = _prompt_column(place, record, names, columns)
    prompt = _checked(
        place, _dialogue(place, record[column]) if column.casefold() == _CHOSEN else record[column]
    )
    left_out = {column, names.get("prompt"), names.get("messages")}
    if column.casefold() == _CHOSEN:
        left_out.add(names.get(_REJECTED))
    meta = {name: _plain(field) for name, field in record.items() if name not in left_out}
    context = _named(record, names, CONTEXT_COLUMNS)
    if isinstance(context, str) and context.strip() and isinstance(prompt, str):
        _check_text(place, context)
        meta["context"] = context
        if not prompt.startswith(context + CONTEXT_SEPARATOR):  # as a run's own prompts.jsonl has it
            prompt = context + CONTEXT_SEPARATOR + prompt
    category = _category(place, record, names, columns)
    if category is not None:
        meta["category"] = category
    elif isinstance(meta.get("category"), Mapping):
        del meta["category"]
    identifier = _named(record, names, ID_COLUMNS)
    if identifier not in (None, ""):
        meta.setdefault("id", _plain(identifier))
    return prompt, meta


def _prompt_column(place: str, record: Mapping[str, Any], names: Mapping[str, str], columns: Columns) -> str:
    """The name of the field that holds the prompt."""
    if columns.prompt is not None:
        return _asked(place, record, names, columns.prompt, "--prompt-column")
    present = [name for name in PROMPT_COLUMNS if name in names]
    if {"prompt", "messages"} <= set(present):
        raise PromptError(
            f"{place} has the fields {', '.join(record)}; expected either prompt (a string) or messages (a list)"
        )
    for winner, beside in _WINNERS:
        if winner in present and (beside is None or set(present) <= {winner, *beside}):
            return names[winner]
    if len(present) == 1:
        return names[present[0]]
    if not present and {_CHOSEN, _REJECTED} <= set(names):
        return names[_CHOSEN]
    if present:
        raise PromptError(
            f"{place} has the fields {', '.join(names[name] for name in present)}, of which each may hold the prompt; "
            "expected one; say which by --prompt-column"
        )
    raise PromptError(f"{place} has the fields {', '.join(record) or '(none)'}; {_RECORD}")


def _asked(place: str, record: Mapping[str, Any], names: Mapping[str, str], column: str, option: str) -> str:
    """The name of the field that an option asks for."""
    found = names.get(column.casefold().strip())
    if found is None:
        raise PromptError(
            f"{place} has no field {column!r}; expected the one that {option} names, found "
            f"{', '.join(record) or 'none'}"
        )
    return found


def _named(record: Mapping[str, Any], names: Mapping[str, str], wanted: Sequence[str]) -> Any:
    """The value of the first of these fields that has one."""
    values = (record[names[name]] for name in wanted if name in names)
    return next((value for value in values if value not in (None, "")), None)


def _category(place: str, record: Mapping[str, Any], names: Mapping[str, str], columns: Columns) -> Any:
    """The category: text, or a sorted list of names; None where there is none."""
    if columns.category is not None:
        value = record[_asked(place, record, names, columns.category, "--category-column")]
    else:
        value = _named(record, names, CATEGORY_COLUMNS)
    if isinstance(value, Mapping):  # BeaverTails: name → whether the prompt is of that category
        held = sorted(str(name) for name, holds in value.items() if holds is True)
        return (held[0] if len(held) == 1 else held) or None
    if isinstance(value, list | tuple):
        listed = sorted({str(name) for name in value if name not in (None, "")})
        return (listed[0] if len(listed) == 1 else listed) or None
    plain = _plain(value)
    return None if plain in (None, "") else plain


def _dialogue(place: str, text: Any) -> Messages:
    """The messages of a dialogue of HH-RLHF, `\\n\\nHuman: …\\n\\nAssistant: …`, without the last reply."""
    parts = _TURN.split("\n\n" + text.strip()) if isinstance(text, str) else []
    turns = list(zip(parts[1::2], parts[2::2], strict=True))
    if not turns or parts[0].strip():
        raise PromptError(
            f"{place}: the field chosen is {text!r:.60}; expected a dialogue as HH-RLHF writes it "
            "(Human: … Assistant: …), or the prompt's field by --prompt-column"
        )
    messages = [{"role": _ROLES[name], "content": said.strip()} for name, said in turns]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return messages


# Checking --------------------------------------------------------------------------------------------------------


def _checked(place: str, value: Any) -> str | Messages:
    """A prompt of any form that the benchmarks have, as text or as messages."""
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]  # SORRY-Bench: turns, of which there is one
    if isinstance(value, str) and value.strip():
        _check_text(place, value)
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value):
        if all(isinstance(entry, str) for entry in value):
            raise PromptError(
                f"{place} is a list of {len(value)} texts, and no list of chat messages; expected one text (a file of "
                "JSON with an entry per prompt ends in .json), or messages with role and content"
            )
        messages = [_message(place, message) for message in value]
        try:
            return as_messages(messages)
        except PromptError as error:
            raise PromptError(f"{place}: {error}") from None
    raise PromptError(f"{place} is {value!r:.60}; expected a non-empty string or a list of chat messages")


def _message(place: str, message: Any) -> dict[str, str]:
    if isinstance(message, Mapping) and isinstance(message.get("role"), str):
        content = message.get("content")
        if isinstance(content, list | tuple) and content and all(map(_is_text_part, content)):
            content = "".join(part["text"] for part in content)
        if isinstance(content, str):
            _check_text(place, content)
            return {"role": message["role"], "content": content}
    raise PromptError(
        f"{place} has the message {message!r:.60}; expected {{'role': …, 'content': …}} with strings"
    )


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _check_text(place: str, text: str) -> None:
    """PromptError for halves of characters, which JSON can spell and no tokenizer reads."""
    for i, char in enumerate(text if not text.isascii() else ""):
        if "\ud800" <= char <= "\udfff":
            raise PromptError(
                f"{place} has half of a character (the lone surrogate U+{ord(char):04X}) at position {i}; expected "
                "text that UTF-8 can hold; repair or remove it"
            )


def _plain(value: Any) -> Any:
    """A value as JSON holds it: numbers that are none and nothing else become None, other objects their text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(field) for name, field in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(field) for field in value]
    return str(value)
