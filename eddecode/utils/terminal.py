"""Escape model text for a terminal.

A model can write characters that a terminal executes: escape sequences that move the cursor, change the window's title
or hide text, and direction marks that change the displayed order. They are shown as escapes instead.
"""

from __future__ import annotations

import unicodedata

_ALLOWED = "\n\t"
# Unicode categories: control, format (direction marks), surrogate, private use, line and paragraph separators.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def escape_control_chars(text: str) -> str:
    r"""The text with every control character, except line breaks and tabs, as an escape.

    >>> print(escape_control_chars("a\x1b[31mb"))
    a\x1b[31mb
    """
    return "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    if char in _ALLOWED or unicodedata.category(char) not in _UNSAFE:
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
