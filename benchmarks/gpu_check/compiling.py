"""How long Triton compiles kernels that are not in its cache, in this process."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


class CompileTimes:
    """Notes each kernel from now on; where Triton has no such hook (before 3.4), none.

    Attributes:
        seconds: of each kernel.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        with suppress(ImportError):
            from triton import knobs

            knobs.compilation.listener = self._heard

    def _heard(self, *, times: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            self.seconds.append(times.total / 1e6)
