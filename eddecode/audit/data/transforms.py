"""Transforms of prompts: given texts that are put before or after what the user asks.

Attacks in the input space (Carlini et al., arXiv 2306.15447, and later work) end in a text: a prefix, a suffix, a
document for the context. eddecode searches for none. It takes them from a file and measures each on base, aligned and
ED, which shows how far a text that was found for one model transfers to another. All of it is data and inserted
literally.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from eddecode.audit.conditions import checked_label
from eddecode.audit.data.prompts import Messages
from eddecode.errors import ConfigError
from eddecode.utils.files import parse_csv, parse_json_lines, read_text


@dataclass(frozen=True)
class Transform:
    """One change to every prompt: `document`, an empty line, then `prefix` + what the user asks + `suffix`.

    Attributes:
        name: becomes part of condition names.
        prefix, suffix: put around the last user message; no space is added.
        document: put before it, as a paragraph of its own.
        found_for: the model for which it was found, such as `aligned`; for the transfer table.

    Raises:
        ConfigError: a name that cannot be part of a condition's name, a field that is no text, or no text at all.
    """

    name: str
    prefix: str = ""
    suffix: str = ""
    document: str = ""
    found_for: str = ""

    def __post_init__(self) -> None:
        checked_label(self.name, "a transform")
        for field in fields(self):
            if not isinstance(value := getattr(self, field.name), str):
                raise ConfigError(f"transform {self.name}: {field.name} is {value!r}; expected text")
        if not (self.prefix or self.suffix or self.document):
            raise ConfigError(f"transform {self.name} changes nothing; expected a prefix, suffix or document")

    def __call__(self, prompt: str | Messages) -> str | Messages:
        """The prompt with the texts inserted; in a chat, around its last user message."""
        if isinstance(prompt, str):
            text = self.prefix + prompt + self.suffix
            return f"{self.document}\n\n{text}" if self.document else text
        at = max(
            (i for i, message in enumerate(prompt) if message["role"] == "user"), default=len(prompt) - 1
        )
        changed = {**prompt[at], "content": str(self(prompt[at]["content"]))}
        return [*prompt[:at], changed, *prompt[at + 1 :]]

    def to_dict(self) -> dict[str, str]:
        """Its fields, without the empty ones."""
        return {name: value for name, value in asdict(self).items() if value}


def with_system(prompt: str | Messages, system: str) -> Messages:
    """The prompt as a chat that begins with a system prompt; one that the chat already has follows it."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if messages[0]["role"] == "system":
        system, messages = f"{system}\n\n{messages[0]['content']}", messages[1:]
    return [{"role": "system", "content": system}, *messages]


def without_system(prompt: str | Messages) -> str | Messages:
    """The prompt without the system prompt that a chat may begin with."""
    if isinstance(prompt, str) or prompt[0]["role"] != "system":
        return prompt
    return list(prompt[1:])


def read_transforms(
    source: str | Path | Sequence[Transform | Mapping[str, Any]],
) -> tuple[Transform, ...]:
    """Transforms of a file (.jsonl, or .csv with a first line of field names), or of a sequence of tables.

    Raises:
        ConfigError: the file cannot be read, a field is unknown, or a name is missing or given twice.
    """
    if isinstance(source, str | Path):
        entries: Iterable[tuple[str, Any]] = _entries(Path(source))
    else:
        entries = ((f"transform {i}", entry) for i, entry in enumerate(source))
    found = tuple(entry if isinstance(entry, Transform) else _made(where, entry) for where, entry in entries)
    names = [transform.name for transform in found]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(f"two transforms are called {name}; expected each name once")
    if isinstance(source, str | Path) and not found:
        raise ConfigError(f"{source} holds no transform; expected at least one")
    return found


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    text = read_text(path, "file of transforms", error=ConfigError)
    if path.suffix.lower() == ".csv":
        return parse_csv(text, path, error=ConfigError, pad=True)
    return parse_json_lines(text, path, error=ConfigError)


def _made(where: str, entry: Any) -> Transform:
    known = [field.name for field in fields(Transform)]
    if not isinstance(entry, Mapping) or "name" not in entry or not set(entry) <= set(known):
        shown = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else repr(entry)[:60]
        raise ConfigError(
            f"{where} has the fields {shown}; expected name and one or more of {', '.join(known[1:])}"
        )
    return Transform(**{key: value for key, value in entry.items() if value is not None})
