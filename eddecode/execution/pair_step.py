"""One captured step for all models of a pair: forward passes, contrast, sampling, and the next step's inputs.

Tokens are fed back on the device, so that the host need not wait for a step before it launches the next one
(`eddecode.execution.pair_loop`). The models run on a stream of their own each: while one model's kernel drains,
another's fills the chip. What belongs to a row (positions, parameters, its random stream) lies on the device and is
written there anew when a row enters or leaves, or when the rows outgrow the step's capacity.

A `StepPart` is a model runner with captured steps and the models that it runs: a pair has two parts, two models on one
backbone have one, with the rows of both side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from eddecode.execution.capture import GraphReplay, side_stream
from eddecode.execution.cuda_graph import CapturedStep, GraphModelRunner, StaticKVCache
from eddecode.sampling.contrast import MASKED, widened
from eddecode.sampling.device import DeviceRows, sample_on_device
from eddecode.sampling.device_penalties import DevicePenalties
from eddecode.sampling.dispatch import packed
from eddecode.sampling.penalties import PenalizedText
from eddecode.utils.device import copy_to_device, to_device
from eddecode_kernels.types import Filters, RawSample


@dataclass(frozen=True)
class StepPart:
    """A model runner with captured steps, and which models its rows belong to.

    Attributes:
        runner: of one model, or of two on one backbone.
        models: indices of its models; row i of model m is row i·len(models) + m of the runner.
        active: what holds while the runner's step runs.
        largest_id: that its models have an embedding for; None if they have one for all ids that may be sampled.
    """

    runner: GraphModelRunner
    models: tuple[int, ...]
    active: Callable[[], AbstractContextManager[Any]]
    largest_id: int | None = None


@dataclass
class RowState:
    """What the host knows of the rows when a step begins, one entry per row.

    Attributes:
        texts: what the base model reads, the sampled tokens included; no model has read the last one yet.
        lengths: per model, how many tokens of each row it has read.
        limits: per model, the last position that each row may come to fill: of the last token that may be sampled.
        device_rows: for all rows, parameters and random streams, on the CPU still; see `DeviceRows`.
        filters: which some row uses.
        forbidden: forbidden ids that rows have room for; 0 if no row has any.
        penalized: what the next token of each row follows, if some rows have penalties; else empty.
        allowed: (rows, V) bool, the ids that each may sample; None if all may sample those of the step's vocabulary.
    """

    texts: Sequence[Sequence[int]]
    lengths: list[list[int]]
    limits: list[list[int]]
    device_rows: DeviceRows
    filters: Filters
    forbidden: int = 0
    penalized: Sequence[PenalizedText] = ()
    allowed: Tensor | None = None

    @property
    def kind(self) -> tuple[Filters, int, bool, int]:
        """What of this a step is captured for: see the arguments of `PairStep`."""
        width = 0 if self.allowed is None else self.allowed.shape[1]
        return self.filters, self.forbidden, bool(self.penalized), width


class PairStep:
    """One token for each of some rows in all models, captured.

    Args:
        parts: the runners.
        batch, capacity: rows, and positions of each.
        vocabulary: (V,) bool.
        filters, forbidden, penalizes: see `RowState`.
        own_ids: of how many ids each row has a vocabulary of its own, in the place of `vocabulary`; 0 is none.

    Attributes:
        rows: on the device.
        inputs: per part, tokens and positions.
        width: positions of a row that it samples, hence the most tokens that it adds to a row.
    """

    replay: GraphReplay
    width = 1

    def __init__(
        self,
        parts: Sequence[StepPart],
        batch: int,
        capacity: int,
        vocabulary: Tensor,
        filters: Filters,
        forbidden: int,
        penalizes: bool,
        own_ids: int,
    ) -> None:
        self.vocabulary, self.filters, self.forbidden = vocabulary, filters, forbidden
        self.models = [part.models for part in parts]  # not the runners: these leave their buffers to others
        self.capacity = capacity
        models = sum(len(part.models) for part in parts)
        device = parts[0].runner.device
        self.rows = DeviceRows.vacant(models, batch, device, forbidden)
        self.largest_ids = [part.largest_id for part in parts]
        self.mask: Tensor | None = None
        if own_ids:
            self.vocabulary = torch.ones(own_ids, dtype=torch.bool, device=device)
            self.mask = torch.zeros(batch, own_ids, device=device)
        width = self.vocabulary.shape[0]
        self.penalties = DevicePenalties.vacant(batch, width, device) if penalizes else None
        self.inputs = [
            CapturedStep(part.runner.cache, batch * len(part.models), capacity, device) for part in parts
        ]
        self.keys = [part.runner.cache.layers[0].keys for part in parts]
        is_cuda = device.type == "cuda"
        self._streams = [side_stream(device, i) for i in range(len(parts) - 1)] if is_cuda else []

    def is_current(self, parts: Sequence[StepPart]) -> bool:
        """Whether the runners' buffers are those that it was captured over."""
        return all(
            part.runner.cache.layers[0].keys is keys for part, keys in zip(parts, self.keys, strict=True)
        )

    def body(self, parts: Sequence[StepPart]) -> Tensor:
        """What is captured: what was sampled, as `eddecode.sampling.dispatch.packed`."""
        tokens = [rearrange(step.inputs[0], "b -> b 1") for step in self.inputs]
        logits = self.logits(parts, [step.cache for step in self.inputs], tokens)
        raw = self.sample([z[:, 0] for z in logits], self.rows)
        active = self.rows.active
        if self.penalties is not None:
            self.penalties.count(raw.tokens, active)
        self.rows.counter += active
        tokens_read = raw.tokens * active
        for models, step, largest in zip(self.models, self.inputs, self.largest_ids, strict=True):
            step.inputs[0].copy_(repeated(known(tokens_read, largest), len(models)))
            step.inputs[1].add_(repeated(active, len(models)))
        return packed(raw)

    def sample(self, logits: Sequence[Tensor], rows: DeviceRows) -> RawSample:
        """A token for each row, from logits (rows, V) float32 per model."""
        if self.mask is not None:
            logits = [widened(z, self.mask.shape[1]) for z in logits]
        forbids = self.forbidden > 0
        return sample_on_device(
            logits, rows, self.vocabulary, self.filters, forbids, self.penalties, self.mask
        )

    def logits(
        self, parts: Sequence[StepPart], caches: Sequence[StaticKVCache], tokens: Sequence[Tensor]
    ) -> list[Tensor]:
        """Per model (B, T, V) float32, after tokens (rows, T) of each part; different parts run side by side."""
        found: dict[int, Tensor] = {}
        with self._forked():
            for i, (part, own_cache, own_tokens) in enumerate(zip(parts, caches, tokens, strict=True)):
                with ExitStack() as stack:
                    if i and self._streams:
                        stack.enter_context(torch.cuda.stream(self._streams[i - 1]))
                    stack.enter_context(part.active())
                    logits = part.runner.logits_of(own_cache, own_tokens)
                split = rearrange(logits, "(b m) t v -> m b t v", m=len(part.models))
                found.update(zip(part.models, split, strict=True))
        return [found[model] for model in sorted(found)]

    @contextmanager
    def _forked(self) -> Iterator[None]:
        """Within the block the other streams may be used; they wait for the stream in use, and it for them.

        Also where the block fails: a capture ends well only if all streams have come back.
        """
        here: Any = torch.cuda.current_stream(self.rows.active.device) if self._streams else None
        for stream in self._streams:
            stream.wait_stream(here)
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):  # of a capture that CUDA has refused
                self._join(here)
            raise
        self._join(here)

    def _join(self, here: Any) -> None:
        for stream in self._streams:
            here.wait_stream(stream)

    def write(self, state: RowState) -> None:
        """Put what the host knows of the rows on the device; the other rows only fill up."""
        count, batch = len(state.texts), self.rows.active.shape[0]
        models, device = self.rows.weights.shape[0], self.rows.active.device
        vacant = DeviceRows.vacant(models, batch - count, torch.device("cpu"), self.forbidden)
        for target, rest, given in zip(
            self.rows.tensors(), vacant.tensors(), state.device_rows.tensors(), strict=True
        ):
            axis = 1 if target is self.rows.weights else 0
            target.copy_(copy_to_device(torch.cat([given, rest], dim=axis), device))
        if self.penalties is not None:
            self.penalties.write(state.penalized)
        if self.mask is not None and state.allowed is not None:
            self.mask.zero_()[:count].masked_fill_(~state.allowed, MASKED)
        last = [[text[-1] for text in state.texts]] * len(state.lengths)
        for own, step, largest in zip(self.models, self.inputs, self.largest_ids, strict=True):
            step.inputs[0].copy_(known(self.of_rows(last, own), largest))
            step.inputs[1].copy_(self.of_rows(state.lengths, own))

    def of_rows(self, values: Sequence[Sequence[int]], models: Sequence[int]) -> Tensor:
        """Numbers per model and row as those of a part's rows, (rows,) int64 on the device; 0 for rows that fill up."""
        count, batch = len(values[0]), self.rows.active.shape[0]
        known = [values[model][row] for row in range(count) for model in models]
        spare = [0] * ((batch - count) * len(models))
        return to_device([*known, *spare], torch.int64, self.rows.active.device)


def known(tokens: Tensor, largest: int | None) -> Tensor:
    """Tokens that a model has an embedding for; what another id makes of its text is not used."""
    return tokens if largest is None else tokens.clamp(max=largest)


def repeated(values: Tensor, times: int) -> Tensor:
    """(B, …) to (B · times, …), each value several times in a row."""
    return values[:, None].expand(-1, times, *values.shape[1:]).reshape(-1, *values.shape[1:])
