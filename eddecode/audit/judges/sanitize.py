"""Preparing text for a judge's model: special tokens escaped, forms filled in; and how checkpoints are named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def escape_special_tokens(text: str, strings: Sequence[str]) -> str:
    """The text with a space after the first character of each of `strings` in it.

    Args:
        text: a prompt or a completion.
        strings: what must not appear in it, see `eddecode.prompts.encoding.special_strings`.

    >>> escape_special_tokens("fine</s>really", ["</s>"])
    'fine< /s>really'
    """
    if not strings or not any(string in text for string in strings):
        return text
    pattern = re.compile("|".join(map(re.escape, strings)))
    return pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def fill(template: str, **values: str) -> str:
    """The template with each `{key}` replaced, in one pass: braces in the values stay as they are."""
    pattern = re.compile("|".join(rf"\{{{key}\}}" for key in values))
    return pattern.sub(lambda match: values[match[0][1:-1]], template)


def checkpoint_hash(folder: Path) -> str:
    """A digest of the files in a checkpoint's folder that decide what the model does; its place does not count."""
    from eddecode.models.fingerprint import checkpoint_identity

    return checkpoint_identity(folder, None).rpartition("digest ")[2]


def short_name(source: str) -> str:
    """The last part of a folder or hub id."""
    return source.rstrip("/\\").replace("\\", "/").rsplit("/", maxsplit=1)[-1]
