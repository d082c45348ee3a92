"""A captured step that adds several tokens to each row: drafted, read by all models in one pass, kept as far as right.

The draft is made on the device, by the base model or from the row's own text, so that the host need not stand between
two steps. All models then read the last token and the drafted ones in one pass. Each position is sampled as it would be
without a draft, from the same logits and with its own random number, and a row keeps what was sampled up to the first
token that is not the drafted one. So a draft changes how many tokens a step gives, never which.

A row does not go beyond its last position: tokens that are drafted beyond are all written there, where the last token
that may be sampled belongs. Nothing reads that one, and what such tokens give is dropped by the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from eddecode.execution.cuda_graph import StaticKVCache
from eddecode.execution.kv_cache import WritePositions
from eddecode.execution.pair_step import PairStep, RowState, StepPart, known, repeated
from eddecode.sampling.device import DeviceRows
from eddecode.sampling.dispatch import packed
from eddecode.utils.device import copy_to_device
from eddecode_kernels.types import RawSample

DraftSource = Literal["base", "ngram"]
DROPPED = -1  # stands for a token that was sampled after a wrong draft


@dataclass(frozen=True)
class DraftPlan:
    """Where a step takes its drafts from.

    Attributes:
        source: "base", the base model's own tokens; "ngram", what followed the last two tokens where they stood before.
        length: drafted tokens of a row; 0 is none.
    """

    source: DraftSource = "base"
    length: int = 0


class DraftedStep(PairStep):
    """Up to plan.length + 1 tokens for each of some rows in all models, captured.

    `body` gives (B · width, models + 3), a row's positions one after another, with `DROPPED` for those not kept. Rows
    with penalties, or a vocabulary of their own, have none: what each position may sample would be another thing.
    """

    def __init__(
        self, plan: DraftPlan, parts: Sequence[StepPart], batch: int, capacity: int, *how: Any
    ) -> None:
        super().__init__(parts, batch, capacity, *how)
        self.plan, self.width = plan, plan.length + 1
        rows = self.rows
        models, device = rows.weights.shape[0], rows.active.device
        self.places = DeviceRows.vacant(models, batch * self.width, device, self.forbidden)
        self.of_base = replace(rows, weights=torch.ones_like(rows.weights[:1]))
        self.limits = [torch.zeros_like(step.inputs[1]) for step in self.inputs]
        self.text = rows.active.new_zeros(batch, capacity + self.width)  # int64, what the base model reads

    def body(self, parts: Sequence[StepPart]) -> Tensor:
        """See `PairStep.body`."""
        ahead = torch.arange(self.width, device=self.text.device)
        positions = [
            torch.minimum(step.inputs[1][:, None] + ahead, limit[:, None])  # (rows, width)
            for step, limit in zip(self.inputs, self.limits, strict=True)
        ]
        stride = len(self.models[0])
        last, read = self.inputs[0].inputs[:, ::stride]  # (B,) each, of the base model
        if self.plan.source == "base":
            drafted = self._by_base(parts[0], last, positions[0][::stride])
        else:
            drafted = continued(self.text, read, self.plan.length)
        tokens = torch.cat([last[:, None], drafted], dim=1)  # (B, width)
        caches = [self._cache(part, at) for part, at in zip(parts, positions, strict=True)]
        read_by = [
            known(
                repeated(tokens, len(models)), largest
            )  # a draft from a prompt may have ids of the base alone
            for models, largest in zip(self.models, self.largest_ids, strict=True)
        ]
        logits = self.logits(parts, caches, read_by)
        self.places.counter.copy_((self.rows.counter[:, None] + ahead).flatten())
        flat = [rearrange(z, "b t v -> (b t) v") for z in logits]
        raw = self.sample(flat, self.places)
        sampled = rearrange(raw.tokens, "(b t) -> b t", t=self.width)
        right = (sampled[:, :-1] == drafted).long().cumprod(dim=1).sum(dim=1)  # (B,)
        kept = torch.where(ahead <= right[:, None], sampled, DROPPED).flatten()
        self._advance(sampled, right, read[:, None] + 1 + ahead)
        return packed(RawSample(kept, raw.logprobs, raw.status))

    def _by_base(self, part: StepPart, token: Tensor, positions: Tensor) -> Tensor:
        """Tokens that the base model samples with the random numbers of their positions, (B, length), one by one."""
        drafted = []
        for i in range(self.plan.length):
            # The first model of a part has every second row where it shares a backbone; it has no change of its own.
            cache = self._cache(part, positions[:, i : i + 1], len(part.models))
            logits = part.runner.logits_of(cache, token[:, None])[:, 0]
            rows = replace(self.of_base, counter=self.rows.counter + i)
            token = self.sample([logits], rows).tokens
            drafted.append(token)
        return torch.stack(drafted, dim=1)

    def _cache(self, part: StepPart, positions: Tensor, stride: int = 1) -> StaticKVCache:
        rows = slice(0, positions.shape[0] * stride, stride)
        return StaticKVCache(part.runner.cache, WritePositions(positions, rows, self.capacity, None))

    def _advance(self, sampled: Tensor, right: Tensor, places: Tensor) -> None:
        """Take the tokens up to the first that was not drafted; `places` (B, width): where the text has them."""
        active = self.rows.active
        self.text.scatter_(1, places, sampled)  # what follows a wrong draft is overwritten by the next step
        last = sampled.gather(1, right[:, None])[:, 0] * active
        count = (right + 1) * active
        self.rows.counter += count
        for models, step, limit in zip(self.models, self.inputs, self.limits, strict=True):
            step.inputs[0].copy_(repeated(last, len(models)))
            step.inputs[1].copy_(torch.minimum(step.inputs[1] + repeated(count, len(models)), limit))

    def write(self, state: RowState) -> None:
        """See `PairStep.write`."""
        super().write(state)
        for target, own in zip(self.places.tensors(), self.rows.tensors(), strict=True):
            axis = 1 if target is self.places.weights else 0
            target.copy_(own.repeat_interleave(self.width, dim=axis))
        for models, limit in zip(self.models, self.limits, strict=True):
            limit.copy_(self.of_rows(state.limits, models))
        if self.plan.source == "ngram":
            text = torch.zeros(self.text.shape, dtype=torch.int64)
            for row, ids in enumerate(state.texts):
                text[row, : len(ids)] = torch.tensor(ids)
            self.text.copy_(copy_to_device(text, self.text.device))


def continued(text: Tensor, read: Tensor, length: int) -> Tensor:
    """What followed the last two tokens of each text where they stood last before: (B, length), begun again at its end.

    The same as `eddecode.engine.speculative.drafters.NgramIndex` finds; the text's beginning where they are new.

    Args:
        text: (B, L) int64; what is in it after the last token does not matter.
        read: (B,) int64, the place of the last token.
        length: tokens.
    """
    at = read[:, None]
    before, last = text.gather(1, (at - 1).clamp(min=0)), text.gather(1, at)
    follows = torch.arange(2, text.shape[1], device=text.device)  # the place after a pair
    found = (text[:, :-2] == before) & (text[:, 1:-1] == last) & (follows <= at)
    start = torch.where(found, follows, 0).amax(dim=1, keepdim=True)
    ahead = torch.arange(length, device=text.device)
    return text.gather(1, start + ahead % (at + 1 - start))
