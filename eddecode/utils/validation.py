"""pydantic's validation errors as sentences of this package, numbers that refuse booleans and text, lists as text.

Values from outside (parameters, configuration files) are checked by pydantic. Its own message is a block of several
lines per problem, with links; here each problem becomes one sentence: what was found, what was expected, what to do.
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from eddecode.errors import ConfigError, EddecodeError

T = TypeVar("T")

_EXPECTED = {
    "greater_than_equal": "a value of at least {ge}",
    "greater_than": "a value above {gt}",
    "less_than_equal": "a value of at most {le}",
    "less_than": "a value below {lt}",
    "string_too_short": "text of length {min_length} or more",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a table of names and values",
    "mapping_type": "a table of names and values",
    "float_type": "a finite number",
    "float_parsing": "a number",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "bool_parsing": "true or false",
}
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument")


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """A hint for a name that is unknown: the most similar known one, or all that are known.

    >>> did_you_mean("temprature", ["alpha", "temperature"])
    'did you mean temperature?'
    >>> did_you_mean("beam", ["alpha", "temperature"])
    'expected one of alpha, temperature'
    """
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"


def split_list(text: str, what: str, *, blanks: bool = False) -> list[str]:
    """The entries of a list that is written as text, without the blanks around them.

    >>> split_list("0, 0.3 1", "alpha", blanks=True)
    ['0', '0.3', '1']

    Args:
        text: the list, separated by commas.
        what: an entry, in messages.
        blanks: entries hold no blanks, which separate them too.

    Raises:
        ConfigError: there is no entry, or one is blank.
    """
    entries = re.split(r"\s*,\s*|\s+" if blanks else r"\s*,\s*", text.strip())
    require_entries(entries, text, what)
    return entries


def require_entries(entries: Sequence[str], text: str, what: str) -> None:
    """Check that a list that is written as text has entries and none of them is blank.

    Nothing where entries should be is most often a shell variable that is not set, so that it is an error.

    Raises:
        ConfigError: there is no entry, or one is blank.
    """
    if all(entry.strip() for entry in entries):
        return
    found = "empty" if not text.strip() else f"{text!r:.60}, which has an empty entry"
    raise ConfigError(f"the list of {what}s is {found}; expected one {what} or more, or leave the option out")


def require_unique(entries: Iterable[Hashable], what: str) -> None:
    """Check that no entry is there twice.

    Raises:
        ConfigError: one is.
    """
    seen: set[Hashable] = set()
    for entry in entries:
        if entry in seen:
            raise ConfigError(f"{what} {entry} is given twice; expected each once")
        seen.add(entry)


def explain(error: ValidationError, *, names: Sequence[str], where: str = "") -> str:
    """One sentence per problem, one problem per line: "NAME is VALUE; expected …".

    A validator of your own raises ValueError("expected …; do …"), and its text takes the place of "expected …". The
    error of a validator of the whole model is given as it is.

    Args:
        error: as pydantic raised it.
        names: the known names, in the order of the fields.
        where: text in front of each sentence, such as "access " or "audit.toml: ".
    """
    return "\n".join(where + _sentence(dict(problem), names) for problem in error.errors())


def _sentence(problem: dict[str, Any], names: Sequence[str]) -> str:
    kind, context = problem["type"], problem.get("ctx") or {}
    first, *path = problem["loc"] or ("",)
    name = str(names[first]) if isinstance(first, int) else str(first)  # a positional argument has its number
    for step in path:
        name += f"[{step}]" if isinstance(step, int) else f".{step}"
    if kind in _UNKNOWN:
        hint = "remove it" if path else did_you_mean(name, names)
        return f"{name} is unknown; {hint}"
    if kind in _MISSING:
        return f"{name} is missing; give it a value"
    if kind == "value_error":
        expected = str(context["error"])
    elif kind in _EXPECTED:
        expected = "expected " + _EXPECTED[kind].format(**context)
    else:
        expected = "expected " + problem["msg"].removeprefix("Input should be ")
    return f"{name} is {problem['input']!r:.100}; {expected}" if name else expected


def raises(kind: type[EddecodeError], where: str = "") -> Callable[[type[T]], type[T]]:
    """Decorator of a pydantic dataclass: its constructor raises `kind`, with the text of `explain`."""

    def decorate(cls: type[T]) -> type[T]:
        construct = cls.__init__
        names = list(cls.__dataclass_fields__)  # type: ignore[attr-defined]

        @functools.wraps(construct)
        def init(self: T, *args: Any, **options: Any) -> None:
            try:
                construct(self, *args, **options)
            except ValidationError as error:
                raise kind(explain(error, names=names, where=where)) from None

        cls.__init__ = init  # type: ignore[method-assign, assignment]
        return cls

    return decorate


def _as_integer(value: Any) -> int:
    """An integer of any integer type (numpy's too), but no boolean."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError("expected an integer") from None


def _as_number(value: Any) -> Any:
    """A number of any real type, but no boolean and no text."""
    if isinstance(value, bool | str | bytes):
        raise ValueError("expected a finite number")
    return value


Integer = Annotated[int, BeforeValidator(_as_integer)]
Number = Annotated[float, BeforeValidator(_as_number), Field(allow_inf_nan=False)]
