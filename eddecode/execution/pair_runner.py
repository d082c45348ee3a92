"""PairRunner: (tokens, slots) → (base logits, aligned logits).

One decoder per model, kept in step: a slot is the same row in all of them, though the models have read different
prompts and stand at different positions. The runner knows nothing of sampling, and nothing of requests.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from eddecode.execution.cuda_graph_capture import GraphCapture
from eddecode.execution.model_runner import CachedModelRunner, ModelRunner, PrefillResult, UncachedModelRunner
from eddecode.execution.model_runner_factory import model_runner_for
from eddecode.execution.rotary import rope_window

if TYPE_CHECKING:
    from eddecode.models.ensemble import ModelGroup


class PairRunner:
    """Runs the models of a pair over shared slots; occupied slots are 0 … n−1.

    Each model is tried once on short texts: where decoding through the cache does not agree with a plain forward
    pass, that model is recomputed from scratch for every token, and a warning says so.

    Args:
        pair: the models.
        capture: how to capture the step of a model, so that it need not be launched from Python (`eddecode.graph`);
            None captures nothing.
    """

    _capture: GraphCapture | None = None

    def __init__(self, pair: ModelGroup, capture: GraphCapture | None = None) -> None:
        self._describe(pair)
        self._capture = capture
        self.model_runners.extend(self.separate_runners)

    def _describe(self, pair: ModelGroup) -> None:
        self.names = pair.names
        self.device = pair.device
        self._context_windows, self._models = pair.context_windows, pair.models
        self.model_runners: list[ModelRunner] = []

    @property
    def windows(self) -> list[int | None]:
        """Per model, the longest text that it can be decoded on; None where there is no limit."""
        limits = [
            [limit for limit in (window, rope_window(model)) if limit is not None]
            for window, model in zip(self._context_windows, self._models, strict=True)
        ]
        return [min(limit, default=None) for limit in limits]

    @cached_property
    def separate_runners(self) -> list[CachedModelRunner | UncachedModelRunner]:
        """Decoders of each model on its own weights, also where the runner decodes several in one pass."""
        return [
            model_runner_for(model, name, self._capture)
            for model, name in zip(self._models, self.names, strict=True)
        ]

    def clone_empty(self) -> PairRunner:
        """The same models with no slot occupied.

        Every engine gets one of its own: two that decode in turns, or one that was given up half-way, would
        otherwise leave their rows in each other's slots.
        """
        other = copy.copy(self)
        other.model_runners = [decoder.clone_empty() for decoder in self.model_runners]
        return other

    def prefill(self, model: int, texts: Sequence[tuple[int, ...]]) -> list[PrefillResult]:
        """Let one model read texts, in one padded batch, without touching a slot."""
        prefixes = self.model_runners[model].prefill(texts)
        for prefix in prefixes:
            prefix.logits = prefix.logits.to(self.device)
        return prefixes

    def reserve(self, slots: int, positions: Sequence[int] = ()) -> None:
        """Have room for that many rows, so that adding them does not grow the buffers one by one.

        Args:
            slots: rows.
            positions: per model, how many positions a row may come to have; empty if that is not known.
        """
        for decoder, most in zip(self.model_runners, positions or [0] * len(self.model_runners), strict=True):
            decoder.reserve(slots, most)

    def add(self, prefixes: Sequence[PrefillResult]) -> None:
        """Occupy the next slot with a row that has read one prefix per model: in all models, or in none."""
        for done, (decoder, prefix) in enumerate(zip(self.model_runners, prefixes, strict=True)):
            try:
                decoder.add(prefix)
            except BaseException:
                for earlier in self.model_runners[:done]:
                    earlier.remove(earlier.occupied - 1)
                raise

    def remove(self, slot: int) -> None:
        """Vacate a slot; the last occupied one moves into its place."""
        for decoder in self.model_runners:
            decoder.remove(slot)

    def forward(self, tokens: Tensor, lengths: Sequence[Sequence[int]]) -> list[Tensor]:
        """Append tokens to every row, in all models.

        Args:
            tokens: (n, T) int64, those of each occupied slot.
            lengths: per model, how many tokens each row has read before. A pass that failed half-way is repeated
                from there.

        Returns:
            Per model (n, T, V_i) float32: the logits after each token.
        """
        return [self.forward_model(model, tokens, before) for model, before in enumerate(lengths)]

    def forward_model(self, model: int, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Append (n, T) tokens to every row of one model, of the given lengths before; logits after each, (n, T, V)."""
        decoder = self.model_runners[model]
        decoder.truncate(lengths)
        return decoder.forward(tokens).to(self.device)

    @cached_property
    def num_parameters(self) -> int:
        """Parameters that a step reads, of all models."""
        return sum(p.numel() for model in self._models for p in model.parameters())

    @cached_property
    def base_share(self) -> float:
        """The base model's share of these parameters: about its share of a step's time."""
        return float(sum(p.numel() for p in self._models[0].parameters()) / self.num_parameters)

    def trim(self) -> None:
        """Give back memory that the occupied slots do not need."""
        for decoder in self.model_runners:
            decoder.trim()
