"""Several texts one after another in one row, so that one pass without padding reads all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

PACKED_CHUNK = 2048  # tokens of one pass: bounds the memory of its activations


class PackedTexts:
    """Texts in one row.

    Attributes:
        total: tokens of all texts.
        spans: where each text begins and ends in the row.
        ids, positions, origins: (total,) int64: tokens, their positions in their texts, and where these begin.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        ends = list(accumulate(len(text) for text in texts))
        self.total = ends[-1]
        self.spans = list(zip([0, *ends[:-1]], ends, strict=True))
        lengths = torch.tensor([len(text) for text in texts])
        self.ids = torch.tensor([token for text in texts for token in text])
        self.origins = torch.tensor([start for start, _ in self.spans]).repeat_interleave(lengths)
        self.positions = torch.arange(self.total) - self.origins

    def ends_within(self, start: int, stop: int) -> list[int]:
        """The last tokens of the texts that end among the tokens start … stop−1."""
        return [end - 1 for _, end in self.spans if start < end <= stop]

    def tiles(self, start: int, stop: int, size: int) -> Tensor:
        """Tiles of at most `size` tokens of one text, of the tokens start … stop−1; see `ForwardContext.tiles`."""
        found = []
        for origin, end in self.spans:
            first, last = max(origin, start), min(end, stop)
            found += [(at - start, min(size, last - at), origin) for at in range(first, last, size)]
        return torch.tensor(found)
