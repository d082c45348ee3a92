"""A chat, rendered by a chat template and compared with what went in.

A template decides what a model reads, and many leave something out: one that expects a list of parts writes nothing of
a string, one has no system role, one cuts long messages. So every rendering is checked: the text of each message must
be in it, whole, once, and in order. White space at both ends of a message may go, since many templates trim it; of an
earlier reply of the assistant, its reasoning (up to `</think>`) may go. The system message may stand anywhere.

For each sequence of roles a *frame* is found once, by rendering a probe: the pieces of text that the template puts
around the messages. It tells whether the template takes strings or lists of parts, and whether the system message must
be folded into the user's turn. A prompt's rendering must be the frame with the messages in it, which takes some
microseconds to compare; where a template changes its frame with the content, the messages are searched for instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from eddecode.errors import PromptError
from eddecode.prompts.template_process import TEMPLATE_DATE, TemplateLimitError, run_template

Span = tuple[int, int]
_THINK_END = "</think>"
_COUNTED = 16  # characters from which a second occurrence of a message is no accident
_OWN_TEMPLATE = "give a template of your own: a text or a file with {prompt}, or a .jinja file"


@dataclass(frozen=True)
class Rendering:
    """A rendered text, and where in it the text of messages lies: (start, end) in order, without overlap."""

    text: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Frame:
    """What a template puts around messages of given roles.

    Attributes:
        pieces: the text before each message, in the order in which they are written, and after the last.
        order: the positions of the messages in that order.
        parts: whether the template takes content as a list of parts, [{"type": "text", "text": …}].
        folded: whether the system message was joined to the first user message.
    """

    pieces: tuple[str, ...]
    order: tuple[int, ...]
    parts: bool
    folded: bool


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    source: str | None = None,
    variables: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
    fold_system: bool = False,
) -> Rendering:
    """Render messages by a chat template, within limits, and check that the text of every message is in the result.

    Args:
        tokenizer: its chat template is used, and its special tokens are given to the template.
        messages: with "role" and "content" (text); any roles that the template takes.
        source: a Jinja template in the place of the tokenizer's.
        variables: more variables for the template, such as {"enable_thinking": False}; of JSON types.
        add_generation_prompt: whether the text ends where the assistant's next turn begins.
        fold_system: where the template takes no system message, put its text before the first user message.

    Raises:
        PromptError: the template fails, takes too long, or leaves out, cuts, repeats or reorders a message.
    """
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    source = chat_source(tokenizer) if source is None else source
    shared = json.dumps(_shared_variables(tokenizer, variables, add_generation_prompt), sort_keys=True)
    roles = tuple(message["role"] for message in messages)
    frame = _frame(source, shared, roles, fold_system)
    if isinstance(frame, str):
        raise PromptError(_refusal(name, frame, roles, fold_system))
    if frame.folded:
        messages = fold(messages)
    try:
        text = _run(source, shared, messages, frame.parts)
    except PromptError as error:
        raise PromptError(_refusal(name, _failed(roles, error), roles, fold_system)) from error
    found = _aligned(text, frame, messages)
    spans = _searched(text, frame, messages) if found is None else found
    if isinstance(spans, str):
        raise PromptError(_refusal(name, spans, roles, fold_system))
    return Rendering(text, tuple(sorted(spans)))


def chat_source(tokenizer: Any) -> str:
    """The Jinja source of a tokenizer's chat template. PromptError if there is none, or several without a default."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise PromptError(f"{str(error).strip()} Or {_OWN_TEMPLATE}") from error


def fold(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Messages without a system role: its text, an empty line, then the text of the first message after it."""
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *map(dict, others)]


def _shared_variables(
    tokenizer: Any, variables: Mapping[str, Any] | None, add_generation_prompt: bool
) -> dict[str, Any]:
    """What the template is given beside the messages, as `apply_chat_template` gives it."""
    special = {
        name: [str(token) for token in value] if isinstance(value, list | tuple) else str(value)
        for name, value in tokenizer.special_tokens_map.items()
    }
    pinned = date.fromisoformat(TEMPLATE_DATE).strftime("%d %b %Y")
    return {
        **special,
        **{"tools": None, "documents": None, "date_string": pinned},
        **(variables or {}),
        "add_generation_prompt": add_generation_prompt,
    }


def _run(source: str, shared: str, messages: Sequence[Mapping[str, str]], parts: bool) -> str:
    given: list[dict[str, Any]] = [dict(message) for message in messages]
    if parts:
        given = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in given]
    length = sum(len(message["content"]) for message in messages)
    return run_template(source, {**json.loads(shared), "messages": given}, length)


def _refusal(name: str, reason: str, roles: Sequence[str], folding: bool) -> str:
    """The message of an error: what the template of a checkpoint does, and the way out."""
    way_out = _OWN_TEMPLATE
    if roles[0] == "system" and not folding:
        way_out = (
            "put the system text into the user's turn (fold_system=True, --fold-system), leave it out, or "
            + way_out
        )
    return f"the chat template of {name} {reason}; {way_out}"


# Frames ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _frame(source: str, shared: str, roles: tuple[str, ...], folding: bool) -> Frame | str:
    """The frame of a template for messages of these roles, or why it cannot be used."""
    reasons = []
    with_system = len(roles) > 1 and roles[0] == "system"
    for folded in (False, True) if with_system and folding else (False,):
        probe = [{"role": role, "content": _probe_text(i, role)} for i, role in enumerate(roles)]
        if folded:
            probe = fold(probe)
        for parts in (False, True):
            try:
                found = _probed(source, shared, probe, parts)
            except TemplateLimitError as error:  # not tried again
                return _failed(roles, error)
            if isinstance(found, Frame):
                return Frame(found.pieces, found.order, parts, folded)
            reasons.append(found)
    return reasons[0]


def _probe_text(i: int, role: str) -> str:
    """A text that occurs in no template, with the characters and the length that templates stumble over."""
    return (
        f"[probe {i}] 'a' \"b\" <c> & {{d}} \\ é 漢字 🙂 https://e.f/?g=h\n\nline two of {role}\n"
        + f"word{i} " * 2500
        + f"[end {i}]"
    )


def _probed(source: str, shared: str, probe: Sequence[Mapping[str, str]], parts: bool) -> Frame | str:
    roles = [message["role"] for message in probe]
    try:
        text = _run(source, shared, probe, parts)
    except TemplateLimitError:
        raise
    except PromptError as error:
        return _failed(roles, error)
    for i, message in enumerate(probe):
        count = text.count(message["content"])
        if count != 1:
            begun = message["content"][:9] in text
            what = "leaves out the text of" if not begun else "cuts or changes the text of"
            if count:
                what = f"writes {count} times the text of"
            return f"{what} {_called(i, roles)}"
    starts = [text.index(message["content"]) for message in probe]
    order = tuple(sorted(range(len(probe)), key=starts.__getitem__))
    turns = [i for i in order if roles[i] != "system"]
    if turns != sorted(turns):
        return f"puts {_called(turns[0], roles)} first; expected the messages in their order"
    ends = [0, *(starts[i] + len(probe[i]["content"]) for i in order)]
    begins = [*(starts[i] for i in order), len(text)]
    pieces = tuple(text[a:b] for a, b in zip(ends, begins, strict=True))
    return Frame(pieces, order, parts, False)


def _failed(roles: Sequence[str], error: PromptError) -> str:
    return f"refuses messages with the roles {', '.join(roles)}: {error}"


def _called(i: int, roles: Sequence[str]) -> str:
    return f"message {i} ({roles[i]})"


# Comparing -------------------------------------------------------------------------------------------------------


def _forms(message: Mapping[str, str]) -> Iterator[str]:
    """The text of a message, and the forms in which a template may write it, from the most faithful on."""
    content = message["content"]
    yield content
    if content != (stripped := content.strip()):
        yield content.rstrip()
        yield content.lstrip()
        yield stripped
    if message["role"] == "assistant" and _THINK_END in content:
        answer = content.rpartition(_THINK_END)[2]
        yield answer
        yield answer.lstrip("\n")
        yield answer.strip()


def _aligned(text: str, frame: Frame, messages: Sequence[Mapping[str, str]]) -> list[Span] | None:
    """Where the messages lie, if the text is the frame with the messages in it; else None."""
    if not text.startswith(frame.pieces[0]):
        return None
    at, spans = len(frame.pieces[0]), []
    for i, after in zip(frame.order, frame.pieces[1:], strict=True):
        for form in _forms(messages[i]):
            end = at + len(form)
            if text.startswith(form, at) and text.startswith(after, end):
                break
        else:
            return None
        spans.append((at, end))
        at = end + len(after)
    return spans if at == len(text) else None


def _searched(text: str, frame: Frame, messages: Sequence[Mapping[str, str]]) -> list[Span] | str:
    """Where the messages lie in a text whose frame differs from the probe's, or what is wrong with it."""
    roles = [message["role"] for message in messages]
    spans: list[Span] = []
    at = 0
    for i in sorted(
        range(len(roles)), key=lambda i: roles[i] == "system"
    ):  # it may stand anywhere: what is left
        if not messages[i]["content"].strip():
            continue
        start_from = 0 if roles[i] == "system" else at
        span = next(
            (span for form in _forms(messages[i]) if (span := _find(text, form, start_from, spans))), None
        )
        if span is None:
            moved = messages[i]["content"].strip() in text
            what = "puts out of order" if moved else "leaves out, cuts or changes"
            return f"{what} the text of {_called(i, roles)} ({_short(messages[i]['content'])})"
        form = text[slice(*span)]
        expected = sum(m["content"].count(form) for m in messages) + sum(p.count(form) for p in frame.pieces)
        if len(form) >= _COUNTED and text.count(form) > max(1, expected):
            return f"writes {text.count(form)} times the text of {_called(i, roles)} ({_short(form)})"
        spans.append(span)
        if roles[i] != "system":
            at = span[1]
    return spans


def _find(text: str, form: str, start: int, taken: Sequence[Span]) -> Span | None:
    """Where a form stands from `start` on, outside of the spans that are taken."""
    while form and (start := text.find(form, start)) >= 0:
        end = start + len(form)
        if all(end <= a or b <= start for a, b in taken):
            return start, end
        start += 1
    return None


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "…"
