"""Two models on one backbone: an aligned release in the form of a low-rank adapter (LoRA).

Base and aligned are then two rows of one batch. The weights are read once for both, the low-rank terms are added to the
aligned model's rows, and a step costs little more than one of the base model alone. Slot 2i is row i of the base model,
slot 2i+1 is row i of the aligned model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from eddecode.execution.compiled.lora import LoraDelta, LoraRows
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.cuda_graph import GraphCapture, GraphModelRunner
from eddecode.execution.model_runner_factory import model_runner_for
from eddecode.execution.runner import CachedModelRunner, ModelRunner, PairRunner, PrefillResult
from eddecode.execution.self_check import plain_logits, probe_inputs, relative_error, self_check
from eddecode.models.lora import Factors

if TYPE_CHECKING:
    from eddecode.models.pair import ModelPair

BASE, ALIGNED = 0, 1


class PairView:
    """One of the two models on a shared backbone, as a `ModelRunner`.

    Attributes:
        backbone: runs both models.
        rows: which of its rows add the low-rank terms.
        model_index: BASE or ALIGNED.
    """

    def __init__(self, backbone: CachedModelRunner, rows: LoraRows, model_index: int) -> None:
        self.backbone, self.rows, self.model_index = backbone, rows, model_index

    @property
    def slots(self) -> slice:
        """The slots of this model's rows in the backbone."""
        return slice(self.model_index, None, 2)

    @property
    def occupied(self) -> int:
        """See `ModelRunner.occupied`."""
        return len(self.backbone.cache.lengths[self.slots])

    @contextmanager
    def active_adapter(self) -> Iterator[None]:
        """Within the block all rows of a pass add the low-rank terms, or none, as this model does."""
        self.rows.active = slice(None) if self.model_index == ALIGNED else None
        try:
            yield
        finally:
            self.rows.active = None

    def prefill(self, texts: Sequence[tuple[int, ...]]) -> list[PrefillResult]:
        """See `ModelRunner.prefill`."""
        with self.active_adapter():
            return self.backbone.prefill(texts)

    def forward(self, tokens: Tensor) -> Tensor:
        """See `ModelRunner.forward`."""
        with self.active_adapter():
            return self.backbone.forward(tokens, self.slots)

    def reserve(self, slots: int, positions: int = 0) -> None:
        """See `ModelRunner.reserve`."""
        self.backbone.reserve(2 * slots, positions)

    def add(self, prefix: PrefillResult) -> None:
        """See `ModelRunner.add`; the base model's part of a row is added first."""
        self.backbone.add(prefix)

    def remove(self, slot: int) -> None:
        """See `ModelRunner.remove`; the aligned model's part removes both parts of a row."""
        if self.model_index == ALIGNED:
            self.backbone.remove(2 * slot + 1)
            self.backbone.remove(2 * slot)
        elif len(self.backbone.cache.lengths) % 2:  # the aligned part was never added
            self.backbone.remove(2 * slot)

    def truncate(self, lengths: Sequence[int]) -> None:
        """See `ModelRunner.truncate`."""
        self.backbone.cache.lengths[self.slots] = lengths

    def trim(self) -> None:
        """See `ModelRunner.trim`."""
        self.backbone.trim()

    def clone_empty(self) -> PairView:
        """Not supported: views are made in pairs, by `LoraPairRunner.clone_empty`."""
        raise NotImplementedError("a view of a shared backbone is made together with the other view")


class LoraPairRunner(PairRunner):
    """A `PairRunner` whose aligned model is its base with low-rank changes: one forward pass serves both.

    Args:
        pair: the two models; the aligned one has the change merged in, and the shared pass is checked against it.
        factors: the low-rank change, by layer.
        dense_mask: see `CachedModelRunner`.
        capture: how decode steps are captured as graphs; None captures nothing.
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
        deltas = {name: LoraDelta(a, b, self._rows) for name, (a, b) in factors.items()}
        layers = CompiledModules(pair.base, deltas)
        self._backbone = (
            CachedModelRunner(pair.base, dense_mask=dense_mask, layers=layers)
            if capture is None
            else GraphModelRunner(pair.base, capture, layers=layers)
        )
        super().__init__(pair, [PairView(self._backbone, self._rows, model) for model in (BASE, ALIGNED)])
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
        other.model_runners = [PairView(other._backbone, self._rows, model) for model in (BASE, ALIGNED)]
        return other

    def forward(self, tokens: Tensor, lengths: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `PairRunner.forward`: one pass over the rows of both models."""
        for runner, before in zip(self.model_runners, lengths, strict=True):
            runner.truncate(before)
        with self._both():
            logits = self._backbone.forward(repeat(tokens, "n t -> (n models) t", models=2))
        base, aligned = rearrange(logits, "(n models) t v -> models n t v", models=2).to(self.device)
        return [base, aligned]

    @contextmanager
    def _both(self) -> Iterator[None]:
        """Within the block every second row of a pass adds the low-rank terms."""
        self._rows.active = slice(ALIGNED, None, 2)
        try:
            yield
        finally:
            self._rows.active = None

    def step_parts(self) -> list[tuple[Any, tuple[int, ...], Callable[[], AbstractContextManager[Any]]]]:
        """See `PairRunner.step_parts`: one part with the rows of both models."""
        return [(self._backbone, (BASE, ALIGNED), self._both)]

    @cached_property
    def num_parameters(self) -> int:
        """See `PairRunner.num_parameters`: both models are one."""
        return sum(p.numel() for p in self.models[BASE].parameters())

    def self_check(self) -> str | None:
        """Why it cannot be used: a pass fails, or the logits of either model are wrong; None if it can."""
        return self_check(self.models[BASE], self._max_relative_error)

    @torch.inference_mode()
    def _max_relative_error(self) -> float:
        """See `self_check.max_relative_error`: each model by itself over two tokens, then both over one.

        Both run the second token once more before the third: a step that was captured is then repeated.
        """
        runner = self.clone_empty()
        texts, prefix_lengths = probe_inputs(self.models[BASE])
        for text, length in zip(texts, prefix_lengths, strict=True):
            runner.add([runner.prefill(model, [tuple(text[:length])])[0] for model in (BASE, ALIGNED)])
        pieces = torch.tensor(
            [text[length : length + 3] for text, length in zip(texts, prefix_lengths, strict=True)]
        )
        separate = [
            runner.forward_model(model, pieces[:, :2], prefix_lengths)[:, 1] for model in (BASE, ALIGNED)
        ]
        again, last = (
            [
                logits[:, 0]
                for logits in runner.forward(pieces[:, [i]], [[length + i for length in prefix_lengths]] * 2)
            ]
            for i in (1, 2)
        )
        return max(
            relative_error(torch.stack([first, second], dim=1), plain_logits(model, texts, prefix_lengths))
            for firsts in (separate, again)
            for model, first, second in zip(self.models, firsts, last, strict=True)
        )
