"""Prompt sets become one list of records: the prompt, and what else is known of it.

`prompt_files` reads the files of the field as they are published, and data sets of the `datasets` library;
`prompt_columns` finds the prompt, its category, context and id in an entry. A prompt is either a string or a list of
chat messages. The other fields of an entry are kept with its prompt. Prompt text is data: nothing in it is interpreted.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eddecode.audit.data.prompt_columns import Columns, Messages, prompt_of
from eddecode.audit.data.prompt_files import entries
from eddecode.audit.judges.base import Case
from eddecode.audit.text_quality import BLANK
from eddecode.errors import PromptError

__all__ = ["BENIGN_FROM", "Messages", "PromptRecord", "as_json", "read_benign_prompts", "read_prompts"]

BENIGN_FROM = 1_000_000
"""Index of the first benign prompt. Both sets can grow at their ends without a change of any index."""


@dataclass(frozen=True)
class PromptRecord:
    """One prompt of an audit.

    Attributes:
        index: its position in the file, from 0; blank lines are not counted. Those of benign prompts are above a
            million.
        prompt: the text, or the chat messages (`role`, `content`).
        meta: what else is known of it: the other fields of its entry, and under their usual names `category`, `id` and
            `context` (the text in front of what is asked, which is part of `prompt`).
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
    def question(self) -> str:
        """What is asked, in all turns but not a system prompt, without what changes no question; see `question_of`."""
        prompt = self.prompt
        turns = (
            [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt if m["role"] != "system"]
        )
        return question_of("\n".join(turns))

    @property
    def digest(self) -> str:
        """16 hex digits over the prompt alone: equal prompts have equal digests, and are one cluster of an interval.

        White space around a text does not count: chat templates drop it, and the completions are then the same.
        """
        if isinstance(self.prompt, str):
            text: Any = self.prompt.strip() or self.prompt
        else:
            text = [{**message, "content": message["content"].strip()} for message in self.prompt]
        return hashlib.blake2b(as_json(text).encode(), digest_size=8).hexdigest()

    @property
    def benign(self) -> bool:
        """Whether it is of the benign set, on which refusals are counted, and not harm."""
        return self.index >= BENIGN_FROM

    @property
    def categories(self) -> tuple[str, ...]:
        """The names in `meta["category"]`: one, several, or none."""
        found = self.meta.get("category")
        listed = found if isinstance(found, list | tuple) else [found]
        return tuple(str(name) for name in listed if name not in (None, ""))

    def case(self, completion: str) -> Case:
        """What a judge is given of a completion of this prompt."""
        return Case(self.text, completion, str(self.meta.get("context") or ""))


def question_of(text: str) -> str:
    """A text without what changes no question: case, forms of letters (NFKC), spaces, punctuation, unseen characters.

    A text of punctuation alone keeps it.

    >>> question_of("“ＷＨＥＲＥ is it?”"), question_of("?!")
    ('whereisit', '?!')
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = [c for c in folded if unicodedata.category(c)[0] not in "CZ" and c not in BLANK | _SELECTORS]
    return "".join(c for c in seen if unicodedata.category(c)[0] != "P") or "".join(seen)


_SELECTORS = frozenset("\u034f\u180b\u180c\u180d\u180f") | frozenset(
    map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)


def as_json(value: Any) -> str:
    """Canonical JSON, for digests: sorted keys, no spaces, ASCII."""
    return _encoder.encode(value)


_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, check_circular=False)


def read_prompts(
    source: str | Path | Sequence[Any],
    *,
    prompt_column: str | None = None,
    category_column: str | None = None,
) -> list[PromptRecord]:
    """The prompts of a file, of a data set, or of a sequence of strings, message lists or records.

    Args:
        source: a path (its ending tells the format), a folder of `datasets`' `save_to_disk`, `hf:ORG/NAME…`, or the
            entries themselves.
        prompt_column: the field with the prompt; None: found by name, see `prompt_columns`.
        category_column: the field with the category; None: found by name.

    Raises:
        PromptError: no such file, an encoding other than UTF-8, no prompts, or an entry that is not a prompt; the
            message has its line.
    """
    columns = Columns(prompt_column, category_column)
    if not isinstance(source, str | Path):
        found: Iterable[tuple[str, Any]] = ((f"prompt {i}", value) for i, value in enumerate(source))
        where = "the list of prompts"
    else:
        where, found = str(source), entries(source)
    records = [PromptRecord(i, *prompt_of(place, value, columns)) for i, (place, value) in enumerate(found)]
    if not records:
        raise PromptError(f"{where} holds no prompt; expected at least one")
    if len(records) > BENIGN_FROM:
        raise PromptError(f"{where} holds {len(records):,} prompts; expected at most {BENIGN_FROM:,}")
    return records


def read_benign_prompts(source: str | Path | Sequence[Any]) -> list[PromptRecord]:
    """The prompts of a benign set, with their indices; see `read_prompts`."""
    return [
        PromptRecord(BENIGN_FROM + record.index, record.prompt, record.meta)
        for record in read_prompts(source)
    ]
