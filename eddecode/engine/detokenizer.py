"""Token ids back to text: completions, pieces of a stream, and the search for stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Tokens before a possible stop string that are decoded with it: bytes of one character, special tokens.
EXTRA_TOKENS = 8


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of token ids, without special tokens; empty where the pair has no tokenizer."""
    if tokenizer is None:
        return ""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def decode_incremental(tokenizer: Any, tokens: Sequence[int]) -> tuple[str, int]:
    """The text of token ids, and where in it the part begins that the last token may have added or changed."""
    # U+FFFD stands for the first bytes of a character that is not complete yet.
    before = decode(tokenizer, tokens[:-1]).rstrip("�")
    return decode(tokenizer, tokens), len(before)


def truncate_at_stop(text: str, stop: Sequence[str], after: int = 0) -> str:
    """The text before the first stop string that ends beyond the first `after` characters."""
    found = [at for string in stop if (at := text.find(string, max(after + 1 - len(string), 0))) >= 0]
    return text[: min(found)] if found else text


@dataclass(frozen=True)
class StopStrings:
    """Whether the newest token of a completion completes a stop string. Only the end of the completion is decoded."""

    tokenizer: Any
    stop: tuple[str, ...]

    def __call__(self, tokens: Sequence[int]) -> bool:
        """True if the newest token completes a stop string."""
        # Each token has at least one byte of the stop string.
        reach = max(len(string.encode()) for string in self.stop) + EXTRA_TOKENS
        text, start = decode_incremental(self.tokenizer, tokens[-reach:])
        return truncate_at_stop(text, self.stop, start) != text


def stable_prefix(text: str, stop: Sequence[str]) -> str:
    """The part of an unfinished completion that later tokens cannot change.

    Without a last character whose bytes are not complete, and without an end that may be the start of a stop string.
    """
    if text.endswith("�"):
        text = text.rstrip("�")
    held_back = 0
    for string in stop:
        for length in range(1, len(string)):
            if text.endswith(string[:length]):
                held_back = max(held_back, length)
    return text[: len(text) - held_back]
