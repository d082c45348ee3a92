"""From a rendered text to token ids: the BOS once, and what a prompt says as text.

A tokenizer turns every spelling of a special token into that token, wherever it stands. A prompt that asks what `</s>`
means would end the text, and one with `<|system|>` in it would write a system message. So special tokens that are
spelt in the text of a message are encoded as text; those of the template around it are tokens. Each spelling is
replaced by a stand-in, a character of Unicode's private use area that the text does not have, and the stand-in's ids by
those of the spelling as plain text: all other ids are those of the same text with any other word in that place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from eddecode.errors import PromptError
from eddecode.prompts.rendering import Rendering

_STAND_INS = tuple(map(chr, range(0xE000, 0xF900)))  # of which a text holds not all


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, with the tokens that the tokenizer adds before a text (once) and none that it adds after."""
    return _with_prefix(tokenizer, text, None)


def encode_rendering(
    tokenizer: Any, rendering: Rendering, specials: re.Pattern[str] | None, *, add_prefix: bool
) -> list[int]:
    """Token ids of a rendering, in which special tokens that are spelt in the text of messages stay text.

    Args:
        tokenizer: of the side.
        rendering: text, and where the messages lie in it.
        specials: a pattern of the special tokens' spellings; None: nothing is escaped.
        add_prefix: whether to put before it what the tokenizer puts before a text (the BOS), unless it begins with it.

    Raises:
        PromptError: this tokenizer cannot encode such a spelling as text.
    """
    ids = None if specials is None else _escaped(tokenizer, rendering, specials)
    if add_prefix:
        return _with_prefix(tokenizer, rendering.text, ids)
    return token_ids(tokenizer, rendering.text) if ids is None else ids


def token_ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    """The ids of a text; special: with what the tokenizer adds around it."""
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def _with_prefix(tokenizer: Any, text: str, ids: list[int] | None) -> list[int]:
    """ids (None: those of the text), and before them what the tokenizer adds before the text if they lack it."""
    plain, full = token_ids(tokenizer, text), token_ids(tokenizer, text, special=True)
    extra = len(full) - len(plain)
    start = next((i for i in range(extra + 1) if full[i : i + len(plain)] == plain), 0)
    prefix, ids = full[:start], plain if ids is None else ids
    return ids if prefix and ids[:start] == prefix else prefix + ids


# Special tokens that are spelt in a message -----------------------------------------------------------------------


def special_strings(tokenizer: Any) -> tuple[str, ...]:
    """Every text that the tokenizer turns into a special token, longest first."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    named = {str(token) for token in tokenizer.all_special_tokens}
    return tuple(
        sorted((text for text in added | named if text.strip()), key=lambda text: (-len(text), text))
    )


def special_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern of every spelling of a special token; None if there is no special token."""
    strings = special_strings(tokenizer)
    return re.compile("|".join(map(re.escape, strings))) if strings else None


def _escaped(tokenizer: Any, rendering: Rendering, specials: re.Pattern[str]) -> list[int] | None:
    """The ids of a rendering with spelt special tokens as text; None if there are none."""
    text, found = rendering.text, _spelt(rendering, specials)
    if not found:
        return None
    new = [_as_text(tokenizer, text[start:end]) for start, end in found]
    stand_in = next(character for character in _STAND_INS if character not in text)
    pieces, at = [], 0
    for start, end in found:
        pieces += [text[at:start], stand_in]
        at = end
    ids = token_ids(tokenizer, "".join([*pieces, text[at:]]))
    replaced = _replaced(ids, _stand_in_ids(tokenizer, stand_in), new)
    if replaced is None:
        raise PromptError(
            f"the prompt spells the special token {text[slice(*found[0])]!r}, and this tokenizer cannot encode it as "
            "text; change the prompt, or let it be the token: escape_specials=False, --no-escape-specials"
        )
    return replaced


def _spelt(rendering: Rendering, specials: re.Pattern[str]) -> list[tuple[int, int]]:
    """Where special tokens are spelt within messages, in order.

    Also one that begins or ends in a message, together with a part of the template.
    """
    return [
        match.span()
        for match in specials.finditer(rendering.text)
        if any(match.start() < end and start < match.end() for start, end in rendering.spans)
    ]


def _stand_in_ids(tokenizer: Any, stand_in: str) -> list[int]:
    """The ids of the stand-in within a text."""
    around = token_ids(tokenizer, f"a{stand_in}")
    alone = token_ids(tokenizer, "a")
    return around[len(alone) :] if around[: len(alone)] == alone else []


def _as_text(tokenizer: Any, spelling: str) -> list[int]:
    """The ids of a special token's spelling as plain text."""
    for before in (
        "a",
        "",
    ):  # some tokenizers put a space before the first word, and take it away when they decode
        ids = _split_ids(tokenizer, before + spelling)
        alone = token_ids(tokenizer, before) if before else []
        shown = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if ids[: len(alone)] == alone and shown == before + spelling:
            return ids[len(alone) :]
    return []


def _split_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _replaced(ids: Sequence[int], old: Sequence[int], new: Sequence[Sequence[int]]) -> list[int] | None:
    """The ids with the n-th occurrence of `old` replaced by the n-th of `new`; None if their numbers differ."""
    if not old or not all(new):
        return None
    out: list[int] = []
    at, count = 0, 0
    while at < len(ids):
        if ids[at] == old[0] and list(ids[at : at + len(old)]) == list(old):
            if count == len(new):
                return None
            out += new[count]
            at, count = at + len(old), count + 1
        else:
            out.append(ids[at])
            at += 1
    return out if count == len(new) else None
