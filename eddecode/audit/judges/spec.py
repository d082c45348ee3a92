"""How a judge is written: as text on a command line, or as a table of an audit file.

    lexicon                                       a kind
    lexicon:words.txt                             with its argument
    classifier:models/tox,harmful=toxic+insult    with an option
    {kind = "classifier", model = "models/tox", harmful = ["toxic", "insult"]}      the same as a table

An option starts at a comma that is followed by `key=`, so that other commas can stand in paths and questions; the names
of a list are joined by `+`. Both forms mean the same, and `str(JudgeSpec)` writes the text form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eddecode.errors import JudgeError

_OPTION_START = re.compile(r",(?=[a-z][a-z0-9_]*=)")


@dataclass(frozen=True)
class JudgeSpec:
    """A kind of judge, its argument, and its options, not checked yet: text, numbers, booleans or lists of text."""

    kind: str
    argument: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, spec: str | Mapping[str, Any]) -> JudgeSpec:
        """Read either form. `registry.make_judge` checks the kind and the options.

        Raises:
            JudgeError: an option is given twice, or a table has no kind.

        >>> JudgeSpec.parse("lexicon:a.txt,name=rude")
        JudgeSpec(kind='lexicon', argument='a.txt', options={'name': 'rude'})
        """
        if isinstance(spec, Mapping):
            table = dict(spec)
            kind, argument = table.pop("kind", None), table.pop("argument", None)
            if not isinstance(kind, str) or not kind:
                raise JudgeError(f'a judge is given as {dict(spec)}; expected a table with kind = "…"')
            return cls(kind, None if argument is None else str(argument), table)
        head, *parts = _OPTION_START.split(spec.strip())
        kind, colon, argument = head.partition(":")
        if colon and not argument.strip():  # most often a shell variable that is not set
            raise JudgeError(
                f"judge {spec!r:.60} has nothing after its colon; give it, or leave the colon out"
            )
        options: dict[str, str] = {}
        for part in parts:
            key, _, value = part.partition("=")
            if key in options:
                raise JudgeError(f"judge {spec!r} has the option {key} twice; expected it once")
            options[key] = value
        return cls(kind, argument or None, options)

    def __str__(self) -> str:
        head = self.kind if self.argument is None else f"{self.kind}:{self.argument}"
        return ",".join([head, *(f"{key}={_as_text(value)}" for key, value in self.options.items())])


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
