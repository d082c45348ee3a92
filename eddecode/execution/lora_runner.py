"""Two models on one backbone: an aligned release in the form of a low-rank adapter (LoRA).

Base and aligned are then two rows of one batch. The weights are read once for both, the low-rank terms are added to the
aligned model's rows, and a step costs little more than one of the base model alone. Slot 2i is row i of the base model,
slot 2i+1 is row i of the aligned model.
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

from eddecode.execution.capture import GraphCapture
from eddecode.execution.compiled.lora import LoraDelta, LoraRows
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.cuda_graph import GraphModelRunner
from eddecode.execution.interfaces import ModelRunner, PrefillResult
from eddecode.execution.model_runner_factory import model_runner_for
from eddecode.execution.patching import triton_runs
from eddecode.execution.runner import CachedModelRunner, PairRunner, StepParts, all_or_none
from eddecode.execution.self_check import Expectation, attempt, depends_on_length
from eddecode.models.float32_pass import LOW_PRECISION, Float32Pass
from eddecode.models.lora import Factors, logit_distance

if TYPE_CHECKING:
    from eddecode.models.pair import ModelPair

BASE, ALIGNED = 0, 1
MAX_SHARE_OF_CHANGE = (
    0.02  # of what the adapter does to the logits: B·A is rounded to the dtype of the weights
)


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
        self._deltas = {name: LoraDelta(a, b, self._rows) for name, (a, b) in factors.items()}
        layers = CompiledModules(pair.base, self._deltas)
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

    @property
    def adds_together(self) -> bool:
        """See `PairRunner.adds_together`."""
        return triton_runs(self._backbone.device, self._backbone.model.dtype)

    def rows_held(self, count: int) -> int:
        """See `PairRunner.rows_held`: half of the backbone's rows."""
        return self._backbone.rows_held(2 * count) // 2

    def add_all(self, rows: Sequence[Sequence[PrefillResult]]) -> None:
        """See `PairRunner.add_all`: both models' parts of all rows in one launch."""
        with all_or_none([self._backbone]):
            self._backbone.add_all([prefix for row in rows for prefix in row])

    @contextmanager
    def _both(self) -> Iterator[None]:
        """Within the block every second row of a pass adds the low-rank terms."""
        self._rows.active = slice(ALIGNED, None, 2)
        try:
            yield
        finally:
            self._rows.active = None

    def step_parts(self) -> list[StepParts]:
        """See `PairRunner.step_parts`: one part with the rows of both models."""
        return [(self._backbone, (BASE, ALIGNED), self._both, None)]

    @cached_property
    def num_parameters(self) -> int:
        """See `PairRunner.num_parameters`: both models are one."""
        return sum(p.numel() for p in self.models[BASE].parameters())

    def self_check(self) -> str | None:
        """Why it cannot be used: a pass fails, or the logits of either model are wrong; None if it can.

        The merged model is the measure of the aligned one: it was compared with PEFT's own unmerged pass as it was
        loaded (`eddecode.models.adapters`).
        """
        return attempt(self.models[BASE], lambda: self._structural_problem() or self._problem())

    @torch.inference_mode()
    def _structural_problem(self) -> str | None:
        """In a low dtype: what is wrong with the sum W + B·A of every layer, in float32, against PEFT's unmerged pass.

        Rounding of the merged weights would hide a small term that is left out.
        """
        base, expected = self.models[BASE], getattr(self.models[ALIGNED], "unmerged_logits", None)
        if base.dtype not in LOW_PRECISION or expected is None:
            return None
        layers = CompiledModules(base, self._deltas, whole_layers=False, operations=False)
        view = PairView(CachedModelRunner(base, dense_mask=True, layers=layers), self._rows, ALIGNED)
        found = []
        with Float32Pass():
            for text in expected.texts:
                runner = view.backbone.clone_empty()
                with view.active_adapter():
                    runner.add(runner.prefill([tuple(text[:1])])[0])
                    found.append(runner.forward(torch.tensor([text[1:]]))[0])
        error = logit_distance(found, [logits[1:] for logits in expected.logits])
        limit = MAX_SHARE_OF_CHANGE * expected.moved
        return None if error <= limit else f"is off by {error:.2g} in float32, above {limit:.2g}"

    @torch.inference_mode()
    def _problem(self) -> str | None:
        """What is wrong with the logits: of each model by itself, and of both in one pass.

        A pass of both repeats the positions of those before it, and the last two have the same form: a step that was
        captured is then repeated.
        """
        runner, expected = self.clone_empty(), [Expectation.of(model) for model in self.models]
        probe = expected[BASE].probe
        prefixes = [
            [runner.prefill(model, [tuple(text[:length])])[0] for model in (BASE, ALIGNED)]
            for text, length in zip(probe.texts, probe.prefixes, strict=True)
        ]
        for row in prefixes:
            runner.add(row)
        firsts = [torch.stack([row[model].logits for row in prefixes])[:, None] for model in (BASE, ALIGNED)]
        separate, together = [[first] for first in firsts], [[first] for first in firsts]
        lengths = list(probe.prefixes)
        for piece in probe.steps():
            for model in (BASE, ALIGNED):
                separate[model].append(runner.forward_model(model, piece, lengths))
            for model, logits in enumerate(runner.forward(piece, [lengths] * 2)):
                together[model].append(logits)
            lengths = [length + piece.shape[1] for length in lengths]
        for found in (separate, together):
            for expectation, pieces in zip(expected, found, strict=True):
                problem = expectation.problem(torch.cat(pieces, dim=1))
                if problem is not None:
                    return problem
        is_ragged = depends_on_length(runner._backbone, probe)
        return "makes a row depend on the length of the others" if is_ragged else None
