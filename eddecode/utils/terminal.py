"""Model text on its way to a terminal.

A model can write what a terminal obeys: escape sequences that move the cursor, retitle the window or hide what follows,
and direction marks that show text in another order than it is in. None of that gets through; it is shown as an escape.
"""

from __future__ import annotations

import unicodedata

_LET_THROUGH = "\n\t"
_UNSAFE = {
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Zl",
    "Zp",
}  # control, format (direction marks), surrogate, private use, separators


def escape_control_chars(text: str) -> str:
    r"""The text with every character that a terminal might obey written out.

    >>> print(escape_control_chars("a\x1b[31mb"))
    a\x1b[31mb
    """
    return "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    if char in _LET_THROUGH or unicodedata.category(char) not in _UNSAFE:
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
