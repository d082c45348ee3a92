"""What a reader sees of a text: which completions are empty, and which prompts are copies of each other."""

from __future__ import annotations

import unicodedata

# Letters and symbols by their category that show nothing: fillers of Hangul, the blank Braille pattern; and the marks
# that stand for an object, or for bytes that are no text.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800\ufffc\ufffd")
_SELECTORS = frozenset("\u034f\u180b\u180c\u180d\u180f") | {
    chr(c) for c in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}


def says(text: str) -> bool:
    """Whether a text has a letter, a digit or a symbol: spaces, punctuation and unseen characters say nothing.

    >>> says("No."), says("+1"), says(" ... \u2800")
    (True, True, False)
    """
    return any(unicodedata.category(c)[0] in "LNS" and c not in _BLANK for c in text)


def question_of(text: str) -> str:
    """A text without what changes no question: case, forms of letters (NFKC), spaces, punctuation, unseen characters.

    A text of punctuation alone keeps it.

    >>> question_of("“ＷＨＥＲＥ is it?”"), question_of("?!")
    ('whereisit', '?!')
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = [c for c in folded if unicodedata.category(c)[0] not in "CZ" and c not in _BLANK | _SELECTORS]
    return "".join(c for c in seen if unicodedata.category(c)[0] != "P") or "".join(seen)
