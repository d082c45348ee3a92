"""Two models on one backbone: an aligned release in the form of a low-rank adapter.

Base and aligned are then two rows of one batch. The weights are read once for both, the adapter's rows get its thin
products on top, and a step costs little more than the base model alone. Slot 2i holds row i as the base sees it, slot
2i+1 as the aligned model does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from einops import rearrange, repeat
from torch import Tensor

from eddecode.execution.compiled.lora import LoraDelta, LoraRows
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.cuda_graph import GraphModelRunner
from eddecode.execution.cuda_graph_capture import GraphCapture
from eddecode.execution.model_runner_factory import model_runner_for
from eddecode.execution.runner import CachedModelRunner, ModelRunner, PairRunner, PrefillResult
from eddecode.execution.self_check import plain_logits, probe_inputs, relative_error, self_check
from eddecode.models.lora import Factors

if TYPE_CHECKING:
    from eddecode.models.pair import ModelPair

BASE, ALIGNED = 0, 1


class PairView:
    """One of the two models on a shared backbone: what `PairRunner` needs of a decoder."""

    def __init__(self, backbone: CachedModelRunner, rows: LoraRows, role: int) -> None:
        self.backbone, self.rows, self.role = backbone, rows, role

    @property
    def slots(self) -> slice:
        """Where this model's rows are."""
        return slice(self.role, None, 2)

    @property
    def occupied(self) -> int:
        """See `ModelRunner.occupied`."""
        return len(self.backbone.cache.lengths[self.slots])

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Within the block all rows of a pass are this model's."""
        self.rows.active = slice(None) if self.role == ALIGNED else None
        try:
            yield
        finally:
            self.rows.active = None

    def prefill(self, texts: Sequence[tuple[int, ...]]) -> list[PrefillResult]:
        """See `ModelRunner.prefill`."""
        with self.speaking():
            return self.backbone.prefill(texts)

    def forward(self, tokens: Tensor) -> Tensor:
        """See `ModelRunner.forward`."""
        with self.speaking():
            return self.backbone.forward(tokens, self.slots)

    def reserve(self, slots: int, positions: int = 0) -> None:
        """See `ModelRunner.reserve`."""
        self.backbone.reserve(2 * slots, positions)

    def add(self, prefix: PrefillResult) -> None:
        """See `ModelRunner.add`; the base's half of a row goes in first."""
        self.backbone.add(prefix)

    def remove(self, slot: int) -> None:
        """See `ModelRunner.remove`; a whole row leaves by its aligned half."""
        if self.role == ALIGNED:
            self.backbone.remove(2 * slot + 1)
            self.backbone.remove(2 * slot)
        elif len(self.backbone.cache.lengths) % 2:  # the aligned half never came in
            self.backbone.remove(2 * slot)

    def truncate(self, lengths: Sequence[int]) -> None:
        """See `ModelRunner.truncate`."""
        self.backbone.cache.lengths[self.slots] = lengths

    def trim(self) -> None:
        """See `ModelRunner.trim`."""
        self.backbone.trim()

    def clone_empty(self) -> PairView:
        """Halves are made in pairs: see `LoraPairRunner.clone_empty`."""
        raise NotImplementedError("a half of a shared backbone is made with its other half")


class LoraPairRunner(PairRunner):
    """A `PairRunner` whose aligned model is its base with low-rank changes: one forward pass serves both.

    Args:
        pair: the two models, the aligned one with its change merged in: what the shared pass is checked against.
        factors: the change, by layer.
        dense_mask: see `CachedModelRunner`.
        capture: see `PairRunner`.
    """

    def __init__(
        self,
        pair: ModelPair,
        factors: Factors,
        *,
        dense_mask: bool = False,
        capture: GraphCapture | None = None,
    ) -> None:
        self._rows = LoraRows()
        changes = {name: LoraDelta(a, b, self._rows) for name, (a, b) in factors.items()}
        layers = CompiledModules(pair.base, changes)
        self._backbone = (
            CachedModelRunner(pair.base, dense_mask=dense_mask, layers=layers)
            if capture is None
            else GraphModelRunner(pair.base, capture, layers=layers)
        )
        super().__init__(pair, [PairView(self._backbone, self._rows, role) for role in (BASE, ALIGNED)])
        self._capture = capture

    @cached_property
    def separate_runners(self) -> list[ModelRunner]:
        """See `PairRunner.separate_runners`: made when they are needed, as scoring does."""
        return [
            model_runner_for(model, name, self._capture)
            for model, name in zip(self.models, self.names, strict=True)
        ]

    def clone_empty(self) -> LoraPairRunner:
        """See `PairRunner.clone_empty`."""
        other = copy.copy(self)
        other._backbone = self._backbone.clone_empty()
        other.model_runners = [PairView(other._backbone, self._rows, role) for role in (BASE, ALIGNED)]
        return other

    def forward(self, tokens: Tensor, lengths: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `PairRunner.forward`: one pass over the rows of both models."""
        for decoder, before in zip(self.model_runners, lengths, strict=True):
            decoder.truncate(before)
        self._rows.active = slice(ALIGNED, None, 2)
        try:
            logits = self._backbone.forward(repeat(tokens, "n t -> (n roles) t", roles=2))
        finally:
            self._rows.active = None
        base, aligned = rearrange(logits, "(n roles) t v -> roles n t v", roles=2).to(self.device)
        return [base, aligned]

    @cached_property
    def num_parameters(self) -> int:
        """See `PairRunner.num_parameters`: both models are read as one."""
        return sum(p.numel() for p in self.models[BASE].parameters())

    def self_check(self) -> str | None:
        """What speaks against it: a pass fails, or either model comes out other than it is."""
        return self_check(self.models[BASE], self._max_relative_error)

    @torch.inference_mode()
    def _max_relative_error(self) -> float:
        """See `self_check.max_relative_error`: each half on its own over two tokens, then both over one.

        Both read the second token once more before the third: a step that was captured is then repeated.
        """
        runner = self.clone_empty()
        texts, read = probe_inputs(self.models[BASE])
        for text, length in zip(texts, read, strict=True):
            runner.add([runner.prefill(role, [tuple(text[:length])])[0] for role in (BASE, ALIGNED)])
        pieces = torch.tensor([text[length : length + 3] for text, length in zip(texts, read, strict=True)])
        apart = [runner.forward_model(role, pieces[:, :2], read)[:, 1] for role in (BASE, ALIGNED)]
        again, last = (
            [logits[:, 0] for logits in runner.forward(pieces[:, [i]], [[length + i for length in read]] * 2)]
            for i in (1, 2)
        )
        return max(
            relative_error(torch.stack([first, second], dim=1), plain_logits(model, texts, read))
            for firsts in (apart, again)
            for model, first, second in zip(self.models, firsts, last, strict=True)
        )
