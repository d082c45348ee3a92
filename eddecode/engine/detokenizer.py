"""Token ids back to text: completions, pieces of a stream, and the search for stop strings.

A completion's text has no special tokens. A stop string that contains the spelling of one is searched for in the text
with them. A stream may give out only what later tokens cannot change: not the first bytes of a character, nor (where
bytes are tokens, `<0xE2>`) a run of bytes, which is one replacement character per byte as soon as one of them is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eddecode.prompts.encoding import special_strings
from eddecode.prompts.thinking import kept_marks

# Tokens before a possible stop string that are decoded with it: bytes of one character.
EXTRA_TOKENS = 8
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_REWRITING = {"WordPiece", "CTC"}  # decoders that join words and punctuation when the next one is known
_REWRITTEN = 8  # characters that they may change


class TextDecoder:
    """One tokenizer's way from ids to text; without a tokenizer every text is empty."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that are left out of a completion's text."""
        return frozenset(self._special) - self._marks.keys()

    @cached_property
    def _special(self) -> dict[int, str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return {int(i): str(token) for i, token in added.items() if token.special}

    @cached_property
    def _marks(self) -> dict[int, str]:
        """Special tokens that mark reasoning: they stay in the text, or nothing would tell it from the answer."""
        known = kept_marks(set(self._special.values()))
        return {i: token for i, token in self._special.items() if token in known}

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """The spellings of special tokens."""
        return () if self.tokenizer is None else special_strings(self.tokenizer)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without special tokens; marks of reasoning are kept."""
        text, start = "", 0
        for at in [i for i, token in enumerate(tokens) if token in self._marks] if self._marks else ():
            text += self._decode(tokens[start:at], skip_special_tokens=True) + self._marks[tokens[at]]
            start = at + 1
        return text + self._decode(tokens[start:], skip_special_tokens=True)

    def full_text(self, tokens: Sequence[int]) -> str:
        """The text of token ids, with the spellings of special tokens."""
        return self._decode(tokens, skip_special_tokens=False)

    def _decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        if self.tokenizer is None:
            return ""
        return str(
            self.tokenizer.decode(
                list(tokens), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def text_before(self, tokens: Sequence[int], end: int) -> str:
        """The text, without special tokens, of the first `end` characters of `full_text`."""
        low, high = 0, len(tokens)  # the most tokens whose full text has no more characters
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(self.full_text(tokens[:middle])) <= end else (low, middle - 1)
        text = self.text(tokens[:low])
        if low < len(tokens) and tokens[low] not in self.special_ids:  # a part of the next token
            text += self.full_text(tokens)[len(self.full_text(tokens[:low])) : end]
        return text

    def settled_tokens(self, tokens: Sequence[int]) -> Sequence[int]:
        """The tokens before a run of byte tokens at the end."""
        end = len(tokens)
        for at in range(len(tokens) - 1, -1, -1):
            if self._is_byte(tokens[at]):
                end = at
            elif tokens[at] not in self.special_ids:
                break
        return tokens[:end]

    def settled_text(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, as far as later tokens cannot change it."""
        text = self.text(self.settled_tokens(tokens)).rstrip("�")
        return text[: len(text) - self._rewritten] if self._rewritten else text

    def _is_byte(self, token: int) -> bool:
        name = self.tokenizer.convert_ids_to_tokens(int(token)) if self.tokenizer is not None else None
        return name is not None and _BYTE.fullmatch(name) is not None

    @cached_property
    def _rewritten(self) -> int:
        """How many characters at the end of a text the decoder may still change."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return 0 if self.tokenizer is None else _REWRITTEN
        state = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
        steps = state.get("decoders", [state])
        if any(step.get("type") in _REWRITING for step in steps):
            return _REWRITTEN
        return max((int(step.get("stop", 0)) for step in steps if step.get("type") == "Strip"), default=0)


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of token ids, without special tokens; empty where the pair has no tokenizer."""
    return TextDecoder(tokenizer).text(tokens)


def truncate_at_stop(text: str, stop: Sequence[str], after: int = 0) -> str:
    """The text before the first stop string that ends beyond the first `after` characters."""
    found = [at for string in stop if (at := text.find(string, max(after + 1 - len(string), 0))) >= 0]
    return text[: min(found)] if found else text


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


@dataclass(frozen=True)
class StopStrings:
    """Whether the newest token of a completion completes a stop string. Only the end of the completion is decoded.

    Attributes:
        decoder: of the completion; a tokenizer is accepted too.
        stop: the strings.
    """

    decoder: TextDecoder
    stop: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.decoder, TextDecoder):
            object.__setattr__(self, "decoder", TextDecoder(self.decoder))

    @cached_property
    def _spelt(self) -> tuple[str, ...]:
        """Stop strings with a special token in them."""
        specials = self.decoder.specials
        return tuple(string for string in self.stop if any(special in string for special in specials))

    @cached_property
    def _plain(self) -> tuple[str, ...]:
        return tuple(string for string in self.stop if string not in self._spelt)

    def __call__(self, tokens: Sequence[int]) -> bool:
        """True if the newest token completes a stop string."""
        special = self.decoder.special_ids
        if self._plain and tokens and tokens[-1] not in special:
            reach = _reach(self._plain)
            visible: list[int] = []
            for token in reversed(tokens):  # special tokens are no text, however many there are
                if token not in special:
                    visible.append(token)
                    if len(visible) == reach:
                        break
            visible.reverse()
            text = self.decoder.text(visible)
            start = len(self.decoder.text(visible[:-1]).rstrip("�"))
            if truncate_at_stop(text, self._plain, start) != text:
                return True
        if not self._spelt:
            return False
        end = tokens[-_reach(self._spelt) :]
        text, start = self.decoder.full_text(end), len(self.decoder.full_text(end[:-1]).rstrip("�"))
        return truncate_at_stop(text, self._spelt, start) != text

    def cut(self, tokens: Sequence[int]) -> str:
        """The text of a completion that its newest token ended, before the stop string.

        A stop string that was complete before, within the least number of tokens, ended nothing and stays.
        """
        text, start = self.decoder.text(tokens), len(self.decoder.text(tokens[:-1]).rstrip("�"))
        found = truncate_at_stop(text, self._plain, start)
        if self._spelt:
            full, start = self.decoder.full_text(tokens), len(self.decoder.full_text(tokens[:-1]).rstrip("�"))
            before = truncate_at_stop(full, self._spelt, start)
            if before != full:
                found = min(found, self.decoder.text_before(tokens, len(before)), key=len)
        return found

    def settled(self, tokens: Sequence[int]) -> str:
        """The text of an unfinished completion that later tokens cannot change, nor a stop string cut off."""
        text = stable_prefix(self.decoder.settled_text(tokens), self._plain)
        if self._spelt:
            settled = self.decoder.settled_tokens(tokens)
            full = self.decoder.full_text(settled)
            text = min(
                text, self.decoder.text_before(settled, len(stable_prefix(full, self._spelt))), key=len
            )
        return text


def _reach(stop: Sequence[str]) -> int:
    """How many tokens at the end of a completion a stop string can take: each has at least one byte of it."""
    return max(len(string.encode(errors="surrogatepass")) for string in stop) + EXTRA_TOKENS
