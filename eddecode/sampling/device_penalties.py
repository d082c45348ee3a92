"""Penalties that stay on the device: how often each row has written each id, counted as tokens are sampled.

What they add to the contrast is that of `eddecode.sampling.penalties`, to the bit, as one more term. Nothing is counted
anew in a step, and nothing comes from the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eddecode.sampling.contrast import weighted_sum
from eddecode.sampling.penalties import PenalizedText, penalized
from eddecode.utils.device import copy_to_device


@dataclass
class DevicePenalties:
    """The penalties of B rows over V ids.

    Attributes:
        written: (B, V) int32, how often a completion has an id.
        read: (B, V) bool, ids of the prompt, of rows with a repetition penalty.
        amounts: (3, B, 1) float64: repetition, presence and frequency penalty.
    """

    written: Tensor
    read: Tensor
    amounts: Tensor

    @classmethod
    def vacant(cls, batch: int, width: int, device: torch.device) -> DevicePenalties:
        """Rows without penalties."""
        written = torch.zeros(batch, width, dtype=torch.int32, device=device)
        amounts = torch.zeros(3, batch, 1, dtype=torch.float64, device=device)
        amounts[0] = 1.0
        return cls(written, torch.zeros_like(written, dtype=torch.bool), amounts)

    def write(self, texts: Sequence[PenalizedText]) -> None:
        """Put the texts of the first rows on the device; the others have no penalties."""
        batch, width = self.written.shape
        vacant = DevicePenalties.vacant(batch, width, self.written.device)
        amounts = np.array([p.amounts for p in texts], dtype=np.float64).T[..., None]  # (3, n, 1)
        vacant.amounts[:, : len(texts)] = copy_to_device(
            torch.from_numpy(amounts.copy()), vacant.amounts.device
        )
        found = [text.counts() for text in texts]
        rows = np.repeat(np.arange(len(texts)), [len(ids) for ids, _ in found])
        ids, counts = (np.concatenate(column) for column in zip(*found, strict=True))
        known = (ids >= 0) & (ids < width)
        at = copy_to_device(torch.from_numpy(np.stack([rows, ids, counts])[:, known]), self.written.device)
        vacant.written[at[0], at[1]] = at[2].int()
        vacant.read[at[0], at[1]] = True
        for target, value in zip(vars(self).values(), vars(vacant).values(), strict=True):
            target.copy_(value)

    def term(self, logits: Sequence[Tensor], weights: Tensor) -> Tensor:
        """What the penalties add to the contrasted logits, (B, V) float32.

        Args:
            logits: N tensors (B, V_i) float32, V_i ≥ V.
            weights: (N, B) float32.
        """
        before, _ = weighted_sum(logits, weights, self.written.shape[1])
        repetition, presence, frequency = self.amounts
        has = self.written > 0
        factor = torch.where(self.read | has, repetition.float(), 1.0)
        minus = (frequency * self.written + presence * has).float()
        return penalized(before, factor, minus)

    def count(self, tokens: Tensor, active: Tensor) -> None:
        """Count a sampled token (B,) of each row that decodes: `active` (B,) is 1 there, else 0."""
        self.written.scatter_add_(1, tokens[:, None], active[:, None].int())
