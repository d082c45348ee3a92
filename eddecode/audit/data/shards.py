"""A shard of an audit: every n-th prompt of it, decoded by a process of its own.

A draw is keyed by seed, prompt, sample and position, so that the processes need not talk to each other: a completion is
the same in a shard and in one run of everything. `eddecode merge` joins the shards to that run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eddecode.audit.data.prompts import PromptRecord
from eddecode.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """One of `of` parts of an audit's prompts.

    Attributes:
        number: from 1 to `of`.
        of: number of parts.

    Raises:
        ConfigError: the number is not among them.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ConfigError(f"shard {self.number}/{self.of}: expected a number from 1 to {self.of}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard as it is written, such as `3/16`.

        >>> Shard.parse("3/16")
        Shard(number=3, of=16)

        Raises:
            ConfigError: it is not of that form.
        """
        found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
        if found is None or int(found[2]) == 0:
            raise ConfigError(f"shard {text!r}: expected NUMBER/COUNT, such as 3/16")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def of_prompts(self, prompts: Sequence[PromptRecord]) -> tuple[PromptRecord, ...]:
        """The shard's prompts: every `of`-th, so that neighbors in a file, which are often alike, are spread.

        Raises:
            ConfigError: there are fewer prompts than shards.
        """
        if len(prompts) < self.of:
            raise ConfigError(
                f"shard {self}: the audit has {len(prompts)} prompts; give at most as many shards"
            )
        return tuple(prompts[self.number - 1 :: self.of])

    def note(self, prompts: int) -> dict[str, Any]:
        """What the store of the shard records: the shard, and the number of prompts of the whole run."""
        return {"number": self.number, "of": self.of, "prompts": prompts}
