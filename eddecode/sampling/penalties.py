"""Penalties on tokens that were read or written before, as what they add to the contrasted logits.

The repetition penalty is that of transformers' `RepetitionPenaltyLogitsProcessor` (Keskar et al., arXiv 1909.05858,
§4.1), on the tokens of the prompt and of the completion; presence and frequency penalties are those of OpenAI's API, on
the completion alone. They act on the contrast before temperature and filters. What they add is one more term of the
contrast, so that every implementation of contrast-and-sample has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eddecode.sampling.contrast import contrast
from eddecode.sampling.params import SamplingParams
from eddecode.utils.device import copy_to_device

_LARGEST = 1e30  # of a change: a penalized logit stays finite


@dataclass(frozen=True)
class PenalizedText:
    """What one token follows.

    Attributes:
        params: with the penalties.
        prompts: ids of the prompt, for each model with a weight.
        written: ids of the completion so far.
    """

    params: SamplingParams
    prompts: Sequence[Sequence[int]]
    written: Sequence[int]

    @property
    def amounts(self) -> tuple[float, float, float]:
        """Repetition, presence and frequency penalty."""
        params = self.params
        return params.repetition_penalty, params.presence_penalty, params.frequency_penalty

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids that a penalty applies to, each once, and how often the completion has each: (K,) int64 both."""
        written, times = np.unique(np.asarray(self.written, dtype=np.int64), return_counts=True)
        read = self.prompts if self.params.repetition_penalty != 1 else ()
        ids = np.unique(np.concatenate([written, *(np.asarray(prompt, dtype=np.int64) for prompt in read)]))
        counts = np.zeros(len(ids), dtype=np.int64)
        counts[np.searchsorted(ids, written)] = times
        return ids, counts


def penalty_term(
    logits: Sequence[Tensor], weights: Tensor, texts: Sequence[PenalizedText], width: int
) -> Tensor:
    """What the penalties add to the contrasted logits of each row; each element depends on its row alone.

    Args:
        logits: N tensors (B, V_i) float32, V_i ≥ width.
        weights: (N, B) float32.
        texts: of each row.
        width: number of ids.

    Returns:
        (B, width) float32; 0 where an id has no penalty, or cannot be sampled.
    """
    device = logits[0].device
    places, amounts = [], []
    for row, text in enumerate(texts):
        ids, counts = text.counts()
        known = (ids >= 0) & (ids < width)
        ids, counts = ids[known], counts[known]
        params = text.params
        places.append(np.stack([np.full_like(ids, row), ids]))
        minus = params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        amounts.append(np.stack([np.full(len(ids), params.repetition_penalty), minus]))
    rows, columns = copy_to_device(torch.from_numpy(np.concatenate(places, axis=1)), device)
    both = np.concatenate(amounts, axis=1).astype(np.float32)
    factor, minus_all = copy_to_device(torch.from_numpy(both), device)
    before = contrast([z[rows, columns][:, None] for z in logits], weights[:, rows])[:, 0]
    term = torch.zeros(len(texts), width, dtype=torch.float32, device=device)
    term[rows, columns] = penalized(before, factor, minus_all)
    return term


def penalized(before: Tensor, factor: Tensor, minus: Tensor) -> Tensor:
    """What a repetition penalty and subtracted ones change in contrasted logits; 0 where these are not finite.

    All are float32 and of one shape.
    """
    after = torch.where(before < 0, before * factor, before / factor) - minus
    return torch.where(before.isfinite(), (after - before).clamp(-_LARGEST, _LARGEST), 0.0)
