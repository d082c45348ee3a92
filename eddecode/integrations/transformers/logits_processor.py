"""A logits processor that contrasts the model that generates with an aligned one.

`generate` gives a processor the ids of every row so far and says nothing of what it did to them: a beam search reorders
rows, a batch may lose some, assisted decoding goes back. So the processor compares each row with those that the aligned
model has read, takes the one with the longest common beginning as the row's past, and has the model read what is
missing. In ordinary decoding that is one token per row and step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from eddecode.errors import PromptError
from eddecode.models.sizes import input_device
from eddecode.sampling.contrast import MASKED, contrast, pair_weights
from eddecode.sampling.params import SamplingParams

_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class _Row:
    """What the aligned model has read of one row: which prompt, and the completion after it."""

    base_ids: tuple[int, ...]  # the base's prompt, with its padding
    prompt: int
    tokens: tuple[int, ...]


class ContrastLogitsProcessor(LogitsProcessor):
    """Replaces the scores of the base model by log-probabilities of the contrast with an aligned model.

    For one call of `generate` at a time. Give `generate` the EOS ids of both models, as `prompts_for_generate` does.

    Args:
        aligned: a causal LM of transformers.
        alpha: strength of the contrast; 0 leaves the scores as they are.
        aligned_ids: what the aligned model reads for each prompt; None: what the base model reads.
        attention_mask: (B, L), the base's; needed where its prompts are padded and `aligned_ids` is None.
        vocabulary: (V,) bool, ids that may be sampled (`ModelPair.vocabulary`); None: all that both models have.

    Raises:
        ParamsError: α is not finite.
    """

    def __init__(
        self,
        aligned: Any,
        alpha: float,
        aligned_ids: Sequence[Sequence[int]] | None = None,
        *,
        attention_mask: Tensor | None = None,
        vocabulary: Tensor | None = None,
    ) -> None:
        self.aligned, self.alpha = aligned, SamplingParams(alpha=alpha).alpha
        self.aligned_ids = None if aligned_ids is None else [[int(i) for i in ids] for ids in aligned_ids]
        self.attention_mask, self.vocabulary = attention_mask, vocabulary
        self.device = input_device(aligned)
        self.reset()

    def reset(self) -> None:
        """Forget everything that was read."""
        self._length = 0  # of the base's prompts, with their padding
        self._prompts: list[list[int]] = []
        self._rows: list[_Row] = []
        self._cache: Any = None
        self._mask: Tensor | None = None  # (rows, positions in the cache)

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Log-probabilities under the contrast, (B, V) float32; −inf for ids that only one model has."""
        if self.alpha == 0:
            return scores
        listed = [tuple(row) for row in input_ids.tolist()]
        known = {row.base_ids for row in self._rows}
        if not self._rows or any(ids[: self._length] not in known for ids in listed):
            self._begin(listed)
        logits = self._logits([self._row(place, ids) for place, ids in enumerate(listed)])
        weights = pair_weights(self.alpha)
        vocabulary = None if self.vocabulary is None else self.vocabulary.to(scores.device)
        mixed = contrast([scores, logits.to(scores.device)], weights, vocabulary)
        # Beam search adds scores up over steps, so that they must be log-probabilities.
        result = torch.full_like(scores, MASKED, dtype=torch.float32)
        result[:, : mixed.shape[1]] = mixed.log_softmax(dim=-1)
        return result

    # Which row is which

    def _begin(self, listed: Sequence[tuple[int, ...]]) -> None:
        """Take the rows as the prompts of a new call; several rows in a run are of one prompt."""
        self.reset()
        self._length = len(listed[0])
        if self.aligned_ids is not None:
            self._prompts = self.aligned_ids
        else:
            self._prompts = self._base_prompts(listed)
        if not self._prompts or len(listed) % len(self._prompts):
            raise PromptError(
                f"the call has {len(listed)} rows and aligned_ids has {len(self._prompts)} prompts; expected one "
                "list of ids per prompt"
            )
        share = len(listed) // len(self._prompts)
        self._rows = [_Row(ids, place // share, ()) for place, ids in enumerate(listed)]

    def _base_prompts(self, listed: Sequence[tuple[int, ...]]) -> list[list[int]]:
        if self.attention_mask is None:
            return [list(ids) for ids in listed]
        mask = self.attention_mask.tolist()
        if len(listed) % len(mask) or len(mask[0]) != self._length:
            raise PromptError(
                f"the call has {len(listed)} rows of {self._length} ids, and attention_mask is {len(mask)} × "
                f"{len(mask[0])}; expected the mask of this call"
            )
        share = len(listed) // len(mask)
        return [
            [i for i, read in zip(ids, mask[place // share], strict=True) if read]
            for place, ids in enumerate(listed)
        ]

    def _row(self, place: int, ids: tuple[int, ...]) -> tuple[int, _Row]:
        """The row that has read most of the beginning of these ids (the same place first), and the row it becomes."""
        base_ids, tokens = ids[: self._length], ids[self._length :]
        same = [i for i, row in enumerate(self._rows) if row.base_ids == base_ids]
        past = max(same, key=lambda i: (_common(self._rows[i].tokens, tokens), i == place, -i))
        return past, _Row(base_ids, self._rows[past].prompt, tokens)

    # The aligned model

    def _logits(self, wanted: Sequence[tuple[int, _Row]]) -> Tensor:
        """(B, V) float32: logits after the prompts and the completions of the wanted rows, which become the rows."""
        rows = [row for _, row in wanted]
        count = len(rows[0].tokens)
        kept = min(_common(self._rows[past].tokens, row.tokens) for past, row in wanted)
        kept = min(kept, count - 1)  # the last token is read again, for its logits
        if self._cache is None or kept < 0 or not self._go_back([past for past, _ in wanted], kept):
            return self._read_prompts(rows)
        self._rows = rows
        new = torch.tensor([row.tokens[kept:] for row in rows], device=self.device)
        return self._forward(new)

    def _go_back(self, pasts: Sequence[int], kept: int) -> bool:
        """Select rows of the cache, and cut their completions to the first `kept` tokens; False where it cannot be."""
        assert self._mask is not None
        extra = len(self._rows[0].tokens) - kept
        try:
            if list(pasts) != list(range(len(self._rows))):
                chosen = torch.tensor(pasts, device=self.device)
                self._cache.batch_select_indices(chosen)
                self._mask = self._mask[chosen]
            if extra:
                self._cache.crop(-extra)
                self._mask = self._mask[:, :-extra]
        except (RuntimeError, ValueError, AttributeError, NotImplementedError):
            return False  # a cache of another kind, such as that of a recurrent model: read everything again
        return True

    def _read_prompts(self, rows: Sequence[_Row]) -> Tensor:
        """Read prompts and completions from the start, padded on the left."""
        self._rows, self._cache = list(rows), _new_cache(self.aligned)
        texts = [[*self._prompts[row.prompt], *row.tokens] for row in rows]
        longest = max(map(len, texts))
        padded = [[0] * (longest - len(text)) + text for text in texts]
        mask = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
        self._mask = torch.zeros(len(rows), 0, dtype=torch.int64, device=self.device)
        return self._forward(torch.tensor(padded, device=self.device), torch.tensor(mask, device=self.device))

    def _forward(self, new: Tensor, mask: Tensor | None = None) -> Tensor:
        assert self._mask is not None
        self._mask = torch.cat([self._mask, torch.ones_like(new) if mask is None else mask], dim=1)
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new.shape[1] :]
        found = self.aligned(
            input_ids=new,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: Tensor = found.logits[:, -1].float()
        return logits


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def _new_cache(model: Any) -> Any:
    """A cache that keeps all positions, so that it can be cut; the model's own kind if it is not attention alone."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    return DynamicCache() if all(kind in _ATTENTION for kind in kinds) else DynamicCache(config=config)
