"""One model, decoded over slots: tokens in, next-token logits in float32 out.

There are two implementations of one small protocol. `CachedModelRunner` keeps keys and values in a `BatchedKVCache`; it
is fast and serves every model whose layers attend over a mask. `UncachedModelRunner` keeps the token ids and runs the
whole text again for every token; it is slow and serves everything else (ALiBi, recurrent states).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from eddecode.execution.attention import attention_in, can_attend
from eddecode.execution.attention_mask import AttentionMaskBuilder
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.kv_cache import BatchedKVCache
from eddecode.execution.lm_head import Float32LMHead
from eddecode.models.sizes import PREFILL_CHUNK, input_device
from eddecode.utils.device import copy_to_device


@dataclass
class PrefillResult:
    """A text that a model has read: what its rows start from.

    Attributes:
        length: tokens read.
        logits: (V,) float32, of the token after it.
        states: per layer (keys, values), each (heads, length, head_dim); empty where they are not kept.
        ids: the text.
    """

    length: int
    logits: Tensor
    states: list[tuple[Tensor, Tensor]]
    ids: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the states."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.states)


class ModelRunner(Protocol):
    """What the runner needs of a model. Occupied slots are 0 … n−1."""

    def prefill(self, texts: Sequence[tuple[int, ...]]) -> list[PrefillResult]:
        """Read texts from their beginning, one batch; touches no slot."""
        ...

    @property
    def occupied(self) -> int:
        """How many slots are occupied."""
        ...

    def reserve(self, slots: int, positions: int = 0) -> None:
        """Have room for that many rows, which may come to have that many positions."""
        ...

    def add(self, prefix: PrefillResult) -> None:
        """Occupy the next slot with a row that has read `prefix`."""
        ...

    def remove(self, slot: int) -> None:
        """Vacate a slot; the last occupied one moves into its place."""
        ...

    def forward(self, tokens: Tensor) -> Tensor:
        """Append (n, T) tokens to all n rows and return the logits after each, (n, T, V) float32."""
        ...

    def truncate(self, lengths: Sequence[int]) -> None:
        """Shorten every row to the given length."""
        ...

    def trim(self) -> None:
        """Give back unused memory."""
        ...

    def clone_empty(self) -> ModelRunner:
        """A decoder of the same model with no slot occupied."""
        ...


class CachedModelRunner:
    """Decodes a model whose layers write keys and values to a cache and attend over a mask."""

    def __init__(
        self, model: Any, *, own_attention: bool = False, layers: CompiledModules | None = None
    ) -> None:
        """own_attention: the model attends by itself, over masks, even where a compiled attention could serve."""
        self.model = model
        self.layers = layers or CompiledModules(
            model
        )  # a fresh decoder of the same model takes over its predecessor's
        self.cache = BatchedKVCache()
        self.head = Float32LMHead(model)
        self.masks = AttentionMaskBuilder(model.config.get_text_config())
        self.own_attention = own_attention or not can_attend(model)
        self.device = input_device(model)

    def clone_empty(self) -> CachedModelRunner:
        """A decoder of the same model with no slot occupied."""
        return CachedModelRunner(self.model, own_attention=self.own_attention, layers=self.layers)

    @torch.inference_mode()
    def prefill(self, texts: Sequence[tuple[int, ...]]) -> list[PrefillResult]:
        """Read texts, padded on the right to the longest, chunk by chunk; see `ModelRunner.prefill`."""
        cache = BatchedKVCache()
        cache.lengths = [0] * len(texts)
        longest = max(len(text) for text in texts)
        cache.reserve(len(texts), longest)
        padded = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts])
        logits: list[Tensor | None] = [None] * len(texts)
        for start in range(0, longest, PREFILL_CHUNK):
            chunk = padded[:, start : start + PREFILL_CHUNK]
            last = torch.tensor(
                [len(text) - 1 - start for text in texts]
            )  # (B,) where rows end, in this chunk or not
            after = self._forward(cache, chunk, last.clamp(0, chunk.shape[1] - 1)[:, None])  # (B, 1, V)
            for row, end in enumerate(last.tolist()):
                if 0 <= end < chunk.shape[1]:
                    logits[row] = after[row, 0].clone()
            cache.advance([chunk.shape[1]] * len(texts))
        return [
            PrefillResult(len(text), z, cache.export_prefix(row, len(text)), text)
            for row, (text, z) in enumerate(zip(texts, logits, strict=True))
            if z is not None
        ]

    @property
    def occupied(self) -> int:
        """See `ModelRunner.occupied`."""
        return len(self.cache.lengths)

    @torch.inference_mode()
    def reserve(self, slots: int, positions: int = 0) -> None:
        """See `ModelRunner.reserve`."""
        self.cache.reserve_lazily(slots, positions)

    @torch.inference_mode()
    def add(self, prefix: PrefillResult) -> None:
        """See `ModelRunner.add`."""
        self.cache.add(prefix.states)

    @torch.inference_mode()
    def remove(self, slot: int) -> None:
        """See `ModelRunner.remove`."""
        self.cache.remove(slot)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, slots: slice = slice(None)) -> Tensor:
        """See `ModelRunner.forward`; `slots` picks some of the occupied slots, (n, T) tokens for them."""
        count, new = tokens.shape
        everywhere = torch.arange(new).expand(count, new)
        logits = self._forward(self.cache, tokens, everywhere, slots)
        self.cache.advance([new] * count, slots)
        return logits

    def truncate(self, lengths: Sequence[int]) -> None:
        """See `ModelRunner.truncate`."""
        self.cache.lengths = list(lengths)

    @torch.inference_mode()
    def trim(self) -> None:
        """See `ModelRunner.trim`."""
        self.cache.trim()

    def _forward(
        self, cache: BatchedKVCache, tokens: Tensor, keep: Tensor, slots: slice = slice(None)
    ) -> Tensor:
        """Run the model over (B, T) new tokens; logits at the places `keep` (B, K) of each row, (B, K, V) float32."""
        with self.head.selecting(keep):
            result = self.run_patched(self.model, cache, tokens, slots)
        return self.head.select(result.logits, keep)

    def run_patched(
        self, part: Any, cache: BatchedKVCache, tokens: Tensor, slots: slice = slice(None)
    ) -> Any:
        """What `part`, the model or its body without the head, returns for (B, T) new tokens of slots of a cache."""
        attention: AbstractContextManager[None] = nullcontext()
        if not (self.own_attention or self.layers.handles_attention):
            attention = attention_in(self.masks.config)
        with self.layers.installed(), attention:
            return part(**self._inputs(cache, tokens, slots))

    def _inputs(self, cache: BatchedKVCache, tokens: Tensor, slots: slice) -> dict[str, Any]:
        """Open a pass, and say what a model takes for it."""
        write = cache.prepare_write(tokens.shape[1], slots)
        positions = copy_to_device(write.positions, self.device)
        mask: Any
        if self.own_attention:
            mask = self.masks.build(positions, write.end, self.model.dtype)
        else:
            mask = self.masks.key_ranges(positions)
        return {
            "input_ids": copy_to_device(tokens, self.device),
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
        }


class UncachedModelRunner:
    """Decodes any causal LM by running the whole text for every token: no cache, one 2-D padding mask."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rows: list[list[int]] = []
        self.head = Float32LMHead(model)
        self.device = input_device(model)

    def clone_empty(self) -> UncachedModelRunner:
        """A decoder of the same model with no slot occupied."""
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
        """Nothing is held."""

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
        """Nothing is held."""

    def _forward(self, texts: list[list[int]], last: int) -> Tensor:
        """Logits after each of the last `last` tokens of every text, (B, last, V) float32."""
        lengths = torch.tensor([len(text) for text in texts])
        return self.after(texts, rearrange(lengths, "b -> b 1") - last + torch.arange(last))

    def after(self, texts: Sequence[Sequence[int]], keep: Tensor) -> Tensor:
        """Logits after the tokens at the places `keep` (B, K) of every text, (B, K, V) float32."""
        lengths = torch.tensor([len(text) for text in texts])
        width = int(lengths.max())
        ids = torch.tensor([[*text, *[text[-1]] * (width - len(text))] for text in texts], device=self.device)
        seen = (torch.arange(width) < lengths[:, None]).long().to(self.device)
        with self.head.selecting(keep):
            result = self.model(input_ids=ids, attention_mask=seen, use_cache=False)
        return self.head.select(result.logits, keep)
