"""UncachedModelRunner: runs the whole text again for every token. Slow, and right for any causal LM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from eddecode.execution.interfaces import PrefillResult
from eddecode.execution.patching import Float32LMHead
from eddecode.models.sizes import input_device


class UncachedModelRunner:
    """Runs any causal LM without a cache, over one 2-D padding mask (ALiBi, recurrent states); see `ModelRunner`.

    compiled_head: whether the head may run by a compiled product.
    """

    def __init__(self, model: Any, *, compiled_head: bool = True) -> None:
        self.model = model
        self.rows: list[list[int]] = []
        self.head = Float32LMHead(model, compiled=compiled_head)
        self.device = input_device(model)

    def clone_empty(self) -> UncachedModelRunner:
        """A runner of the same model with no slot occupied."""
        return UncachedModelRunner(self.model)

    @torch.inference_mode()
    def prefill(self, texts: Sequence[tuple[int, ...]]) -> list[PrefillResult]:
        """See `ModelRunner.prefill`."""
        after = self._forward([list(text) for text in texts], 1)[:, 0]
        return [PrefillResult(len(text), z, [], text) for text, z in zip(texts, after, strict=True)]

    @property
    def occupied(self) -> int:
        """See `ModelRunner.occupied`."""
        return len(self.rows)

    def reserve(self, slots: int, positions: int = 0) -> None:
        """No memory is held."""

    def add(self, prefix: PrefillResult) -> None:
        """See `ModelRunner.add`."""
        self.rows.append(list(prefix.ids))

    def remove(self, slot: int) -> None:
        """See `ModelRunner.remove`."""
        self.rows[slot] = self.rows[-1]
        self.rows.pop()

    @torch.inference_mode()
    def forward(self, tokens: Tensor) -> Tensor:
        """See `ModelRunner.forward`."""
        longer = [row + new for row, new in zip(self.rows, tokens.tolist(), strict=True)]
        logits = self._forward(longer, tokens.shape[1])
        self.rows = longer
        return logits

    def truncate(self, lengths: Sequence[int]) -> None:
        """See `ModelRunner.truncate`."""
        self.rows = [row[:length] for row, length in zip(self.rows, lengths, strict=True)]

    def trim(self) -> None:
        """No memory is held."""

    def _forward(self, texts: list[list[int]], last: int) -> Tensor:
        """Logits after each of the last `last` tokens of every text, (B, last, V) float32."""
        lengths = torch.tensor([len(text) for text in texts])
        return self.logits_at(texts, rearrange(lengths, "b -> b 1") - last + torch.arange(last))

    def logits_at(self, texts: Sequence[Sequence[int]], positions: Tensor) -> Tensor:
        """Logits after the tokens at `positions` (B, K) of every text, (B, K, V) float32."""
        lengths = torch.tensor([len(text) for text in texts])
        width = int(lengths.max())
        ids = torch.tensor([[*text, *[text[-1]] * (width - len(text))] for text in texts], device=self.device)
        attended = (torch.arange(width) < lengths[:, None]).long().to(self.device)
        with self.head.selecting(positions):
            result = self.model(input_ids=ids, attention_mask=attended, use_cache=False)
        return self.head.select(result.logits, positions)
