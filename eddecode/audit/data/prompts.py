"""Prompt files: JSON Lines, CSV and plain text become one list of records.

The file's ending decides: `.jsonl`/`.ndjson`, `.csv`/`.tsv`; everything else is plain text with one prompt per line.
A prompt is either a string or a list of chat messages. The other fields of a JSON record or a CSV row (a `category`, an
`id`) are kept with its prompt. Prompt text is data: nothing in it is interpreted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eddecode.errors import PromptError
from eddecode.utils.files import parse_csv, parse_json_lines, read_text

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class PromptRecord:
    """One prompt of an audit.

    Attributes:
        index: its position in the file, from 0; blank lines are not counted.
        prompt: the text, or the chat messages (`role`, `content`).
        meta: the other fields of its record, such as `category`.
    """

    index: int
    prompt: str | Messages
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The user's text, for a judge: the string, or the last user message."""
        if isinstance(self.prompt, str):
            return self.prompt
        texts = [m["content"] for m in self.prompt if m["role"] == "user"]
        return texts[-1] if texts else self.prompt[-1]["content"]

    @property
    def digest(self) -> str:
        """16 hex digits over the prompt alone: equal prompts have equal digests."""
        return hashlib.blake2b(as_json(self.prompt).encode(), digest_size=8).hexdigest()


def as_json(value: Any) -> str:
    """Canonical JSON, for digests: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def read_prompts(source: str | Path | Sequence[Any]) -> list[PromptRecord]:
    """The prompts of a file, or of a sequence of strings, message lists or `{"prompt": …}` records.

    Raises:
        PromptError: no such file, not UTF-8, no prompts, or an entry that is not a prompt; the message has its line.
    """
    if not isinstance(source, str | Path):
        entries: Iterable[tuple[str, Any]] = ((f"prompt {i}", value) for i, value in enumerate(source))
        where = "the list of prompts"
    else:
        path = Path(source)
        where = str(path)
        entries = _entries(path)
    records = [PromptRecord(i, *_prompt(where, value)) for i, (where, value) in enumerate(entries)]
    if not records:
        raise PromptError(f"{where} holds no prompt; expected at least one")
    return records


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, raw entry) of every prompt of a file."""
    text = read_text(path, "prompt file", error=PromptError)
    ending = path.suffix.lower()
    if ending in {".jsonl", ".ndjson"}:
        yield from parse_json_lines(text, path, error=PromptError)
    elif ending in {".csv", ".tsv"}:
        delimiter = "\t" if ending == ".tsv" else ","
        yield from parse_csv(text, path, error=PromptError, required=("prompt",), delimiter=delimiter)
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{path}, line {number}", line.strip()


def _prompt(where: str, value: Any) -> tuple[str | Messages, dict[str, Any]]:
    """(prompt, meta) of a raw entry: a string, a message list, or a record with `prompt` or `messages`."""
    meta: dict[str, Any] = {}
    if isinstance(value, Mapping):
        meta = {str(key): kept for key, kept in value.items() if key not in {"prompt", "messages"}}
        if ("prompt" in value) == ("messages" in value):
            raise PromptError(
                f"{where} has the fields {', '.join(map(str, value)) or '(none)'}; "
                "expected either prompt (a string) or messages (a list)"
            )
        value = value["prompt"] if "prompt" in value else value["messages"]
    if isinstance(value, str) and value.strip():
        return value, meta
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return [_message(where, message) for message in value], meta
    raise PromptError(f"{where} is {value!r:.60}; expected a non-empty string or a list of chat messages")


def _message(where: str, message: Any) -> dict[str, str]:
    if isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content")):
        return {"role": message["role"], "content": message["content"]}
    raise PromptError(
        f"{where} has the message {message!r:.60}; expected {{'role': …, 'content': …}} with strings"
    )
