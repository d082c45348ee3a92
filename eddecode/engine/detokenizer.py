"""Token ids back to text: completions, pieces of a stream, and the search for stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SLACK = (
    8  # tokens before a possible stop string that are decoded with it: bytes of one character, special tokens
)


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of token ids, special tokens left out; empty where the pair has no tokenizer."""
    if tokenizer is None:
        return ""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def newest(tokenizer: Any, tokens: Sequence[int]) -> tuple[str, int]:
    """The text of token ids, and where in it the part begins that the last of them may have brought or changed."""
    before = decode(tokenizer, tokens[:-1]).rstrip("�")  # bytes of a character that was still to be completed
    return decode(tokenizer, tokens), len(before)


def cut(text: str, stop: Sequence[str], after: int = 0) -> str:
    """The text before the first stop string that ends beyond the first `after` characters."""
    found = [at for string in stop if (at := text.find(string, max(after + 1 - len(string), 0))) >= 0]
    return text[: min(found)] if found else text


@dataclass(frozen=True)
class StopStrings:
    """Whether a growing completion comes to the end of one of the stop strings: only its own end is looked at."""

    tokenizer: Any
    stop: tuple[str, ...]

    def __call__(self, tokens: Sequence[int]) -> bool:
        """True if the newest token completes a stop string."""
        reach = max(len(string.encode()) for string in self.stop) + SLACK  # a token brings one byte at least
        text, begun = newest(self.tokenizer, tokens[-reach:])
        return cut(text, self.stop, begun) != text


def settled(text: str, stop: Sequence[str]) -> str:
    """The part of an unfinished completion that later tokens cannot change.

    Held back are a character whose last bytes are still to come, and an end that may be the beginning of a stop string.
    """
    if text.endswith("�"):
        text = text.rstrip("�")
    held = 0
    for string in stop:
        for length in range(1, len(string)):
            if text.endswith(string[:length]):
                held = max(held, length)
    return text[: len(text) - held]
