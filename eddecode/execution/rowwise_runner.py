"""RowwiseModelRunner: runs rows one by one, for models that cannot run rows of different lengths in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from eddecode.execution.runner import CachedModelRunner


class RowwiseModelRunner(CachedModelRunner):
    """Runs one row after the other, for models whose layers ask the cache for *the* length of its rows (Llama 4).

    Such a layer would make a row depend on how long its batch mates are. In a pass over a single row its length is the
    length. Prompts are run together: all of them begin at the first position.
    """

    serves_ragged_passes = False

    @torch.inference_mode()
    def forward(self, tokens: Tensor, slots: slice = slice(None)) -> Tensor:
        """See `CachedModelRunner.forward`."""
        places = range(*slots.indices(self.occupied))
        own = super().forward
        return torch.cat(
            [own(row[None], slice(slot, slot + 1)) for row, slot in zip(tokens, places, strict=True)]
        )
