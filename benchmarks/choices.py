"""Options of benchmarks that are lists, separated by commas."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TypeVar

from eddecode.errors import ConfigError
from eddecode.utils.validation import require_unique, split_list

T = TypeVar("T")


def option(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The `type` of an option of argparse: a configuration error is a message of the command."""

    def parsed(value: str) -> T:
        try:
            return parse(value)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def choices(
    known: Sequence[str], also: Callable[[str], bool] = lambda name: False
) -> Callable[[str], list[str]]:
    """The `type` of an option: a list of names, each known and there once.

    Args:
        known: the names.
        also: which other names are allowed.
    """

    def parse(value: str) -> list[str]:
        names = split_list(value, "name")
        require_unique(names, "name")
        if unknown := [name for name in names if name not in known and not also(name)]:
            raise ConfigError(f"{', '.join(unknown)}; expected some of {', '.join(known)}")
        return names

    return option(parse)
