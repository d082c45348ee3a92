"""The forms of a prompt: text, chat messages, or rendered token ids."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Any, TypeAlias

from eddecode.errors import PromptError

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class RenderedPrompt:
    """The token ids of a prompt for both models. Any sequences of ids ≥ 0 (lists, arrays, 1-D tensors) are accepted."""

    base_ids: tuple[int, ...]
    aligned_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("base_ids", "aligned_ids"):
            object.__setattr__(self, name, check_token_ids(getattr(self, name), f"RenderedPrompt.{name}"))

    @property
    def ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(base_ids, aligned_ids), in the order of `ModelPair.models`."""
        return self.base_ids, self.aligned_ids

    @cached_property
    def digest(self) -> bytes:
        """16 bytes of blake2b over both lists as little-endian int64, each preceded by its length."""
        packed = b"".join(struct.pack(f"<{len(ids) + 1}q", len(ids), *ids) for ids in self.ids)
        return hashlib.blake2b(packed, digest_size=16).digest()


Message: TypeAlias = Mapping[str, str]


Prompt: TypeAlias = str | Sequence[Message] | RenderedPrompt


def check_token_ids(ids: Any, where: str) -> tuple[int, ...]:
    """Token ids from any list, array or 1-D tensor of integers ≥ 0; `where` names them in a PromptError."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise PromptError(f"{where} is {ids!r}; expected a list of token ids (integers ≥ 0)")
    if hasattr(ids, "tolist"):
        ids = ids.tolist()  # arrays and tensors
    checked = []
    for position, token in enumerate(ids):
        try:
            value = -1 if isinstance(token, bool) else index(token)
        except TypeError:
            value = -1
        if value < 0:
            raise PromptError(f"{where}[{position}] is {token!r}; expected a token id, an integer ≥ 0")
        checked.append(value)
    if not checked:
        raise PromptError(f"{where} is empty; expected at least one token (such as the BOS)")
    return tuple(checked)


def as_messages(prompt: str | Sequence[Message]) -> list[dict[str, str]]:
    """Check a prompt and convert it to chat messages: optionally `system`, then alternating `user` and `assistant`.

    The last message is the `user`'s. PromptError for anything else.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(
            f"a prompt is a {type(prompt).__name__}; expected a string, a list of chat messages such as "
            "[{'role': 'user', 'content': …}], or a RenderedPrompt"
        )
    messages = [_check_message(message, i) for i, message in enumerate(prompt)]
    if not messages:
        raise PromptError("a prompt has no messages; expected at least one from the user")
    turns = [message["role"] for message in messages if message["role"] != "system"]
    expected = [("user", "assistant")[i % 2] for i in range(len(turns))]
    systems = [i for i, message in enumerate(messages) if message["role"] == "system"]
    if turns != expected or len(turns) % 2 == 0 or systems not in ([], [0]):
        roles = ", ".join(message["role"] for message in messages)
        raise PromptError(
            f"the roles of a prompt's messages are {roles}; expected an optional system first, then user and "
            "assistant in turn, and a user last (text that begins the assistant's turn is given as prefill)"
        )
    return messages


def check_characters(text: str, where: str) -> None:
    """Refuse a text that no tokenizer reads: it has half of a character, as bytes that are not UTF-8 become.

    Raises:
        PromptError: there is a lone surrogate; `where` names the text.
    """
    if (found := _SURROGATE.search(text)) is not None:
        raise PromptError(
            f"{where} has half of a character (the lone surrogate U+{ord(found[0]):04X}) at position {found.start()}; "
            "expected text in UTF-8"
        )


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _check_message(message: Any, i: int) -> dict[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        found = sorted(map(str, message)) if isinstance(message, Mapping) else repr(message)
        raise PromptError(f"message {i} of a prompt has {found}; expected exactly 'role' and 'content'")
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise PromptError(
            f"message {i} of a prompt has the role {role!r}; expected system, user or assistant"
        )
    if isinstance(content, list | tuple) and all(map(_is_text_part, content)):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise PromptError(
            f"the content of message {i} is a {type(content).__name__}; expected text (a string), or a list of parts "
            "of type text. Images and tool calls are not supported"
        )
    if not content.strip():
        raise PromptError(f"message {i} ({role}) of a prompt is empty; give it text, or leave it out")
    check_characters(content, f"message {i} ({role}) of a prompt")
    return {"role": role, "content": content}
