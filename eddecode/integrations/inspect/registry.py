"""The entry point of the group `inspect_ai`: Inspect imports this module to find what eddecode offers.

Inspect imports it for every command, so that nothing here loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inspect_ai.model import modelapi

from eddecode.integrations.inspect.scorers import judges, stderr_by_prompt
from eddecode.integrations.inspect.task import contrast, reversal

if TYPE_CHECKING:
    from eddecode.integrations.inspect.provider import PairAPI

__all__ = ["contrast", "eddecode", "judges", "reversal", "stderr_by_prompt"]


@modelapi(name="eddecode")
def eddecode() -> type[PairAPI]:
    """The provider of `eddecode/pair`."""
    from eddecode.integrations.inspect.provider import PairAPI

    return PairAPI
