"""Texts on their way into a judge: special tokens broken up, templates read and filled; names and contents of files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eddecode.errors import JudgeError


def special_strings(tokenizer: Any) -> tuple[str, ...]:
    """What the tokenizer reads as a special token wherever it stands in a text, longest first."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    named = {str(token) for token in tokenizer.all_special_tokens}
    return tuple(
        sorted((text for text in added | named if text.strip()), key=lambda text: (-len(text), text))
    )


def defused(text: str, strings: Sequence[str]) -> str:
    """The text with a space after the first character of every one of `strings` in it.

    >>> defused("fine</s>really", ["</s>"])
    'fine< /s>really'
    """
    if not strings or not any(string in text for string in strings):
        return text
    pattern = re.compile("|".join(map(re.escape, strings)))
    return pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def read_template(path: str, name: str) -> str:
    """A judge's own prompt format from a file: a text with {prompt} and {completion}, taken byte for byte.

    Raises:
        JudgeError: the file cannot be read, or lacks {completion}.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise JudgeError(f"judge {name}: the template {path} cannot be read ({error})") from error
    if "{completion}" not in text:
        raise JudgeError(
            f"judge {name}: the template {path} has no {{completion}}; expected it where the text goes"
        )
    return text


def fill(template: str, **values: str) -> str:
    """The template with `{key}` replaced literally, in one pass: what is filled in is not looked at again."""
    pattern = re.compile("|".join(rf"\{{{key}\}}" for key in values))
    return pattern.sub(lambda match: values[match[0][1:-1]], template)


def content(folder: Path) -> str:
    """A digest of the files in a checkpoint's folder that decide what it does; not of the folder's name."""
    from eddecode.models.fingerprint import checkpoint_identity

    return checkpoint_identity(folder, None).rpartition("digest ")[2]


def short_name(source: str) -> str:
    """The last part of a folder or hub id."""
    return source.rstrip("/\\").replace("\\", "/").rsplit("/", maxsplit=1)[-1]
