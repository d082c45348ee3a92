"""One captured step for all models of a pair: forward passes, contrast, sampling, and the next step's inputs.

Tokens are fed back on the device, so that the host need not wait for a step before it launches the next one. It reads
what a step sampled while the device goes on with the step after it. The models run on a stream of their own each: while
one model's kernel drains, another's fills the chip. What belongs to a row (positions, parameters, its random stream)
lies on the device and is written there anew when a row enters or leaves, or when the rows outgrow the step's capacity.

A `StepPart` is a model runner with captured steps and the models that it runs: a pair has two parts, two models on one
backbone have one, with the rows of both side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from eddecode.errors import EngineError, UnsupportedLayersError
from eddecode.execution import cuda_graph
from eddecode.execution.cuda_graph import CapturedStep, GraphModelRunner, GraphReplay, bucket
from eddecode.execution.runner import PairRunner
from eddecode.sampling.device import DeviceRows, sample_on_device
from eddecode.sampling.dispatch import packed, unpacked
from eddecode.utils.device import to_device
from eddecode_kernels.types import Filters, RawSample

MAX_PAIR_STEPS = 8  # captured at a time; the one used longest ago goes


class CaptureError(EngineError):
    """The step of a pair cannot be captured, though those of its models can."""


@dataclass(frozen=True)
class StepPart:
    """A model runner with captured steps, and which models its rows belong to.

    Attributes:
        runner: of one model, or of two on one backbone.
        models: indices of its models; row i of model m is row i·len(models) + m of the runner.
        active: what holds while the runner's step runs.
    """

    runner: GraphModelRunner
    models: tuple[int, ...]
    active: Callable[[], AbstractContextManager[Any]]


@dataclass
class RowState:
    """What the host knows of the rows when a step begins, one entry per row.

    Attributes:
        tokens: the last token of each row, which no model has read yet.
        lengths: per model, how many tokens of each row it has read.
        device_rows: for all rows, parameters and random streams; see `DeviceRows`.
        filters: which some row uses.
        forbids: whether some row has forbidden ids.
    """

    tokens: list[int]
    lengths: list[list[int]]
    device_rows: DeviceRows
    filters: Filters
    forbids: bool


class PairStep:
    """One token for each of some rows in all models, captured.

    Attributes:
        rows: on the device.
        inputs: per part, tokens and positions.
    """

    replay: GraphReplay

    def __init__(
        self,
        parts: Sequence[StepPart],
        batch: int,
        capacity: int,
        vocabulary: Tensor,
        filters: Filters,
        forbids: bool,
    ) -> None:
        self.vocabulary, self.filters, self.forbids = vocabulary, filters, forbids
        self.models = [part.models for part in parts]  # not the runners: these leave their buffers to others
        self.capacity = capacity
        models = sum(len(part.models) for part in parts)
        device = parts[0].runner.device
        self.rows = DeviceRows.vacant(models, batch, device)
        self.inputs = [
            CapturedStep(part.runner.cache, batch * len(part.models), capacity, device) for part in parts
        ]
        self.keys = [part.runner.cache.layers[0].keys for part in parts]
        make: Any = torch.cuda.Stream
        self._streams = [make(device) for _ in parts[1:]] if device.type == "cuda" else []

    def is_current(self, parts: Sequence[StepPart]) -> bool:
        """Whether the runners' buffers are those that it was captured over."""
        return all(
            part.runner.cache.layers[0].keys is keys for part, keys in zip(parts, self.keys, strict=True)
        )

    def body(self, parts: Sequence[StepPart]) -> Tensor:
        """What is captured: what was sampled as `eddecode.sampling.dispatch.packed`, but (B, models + 3) float64."""
        logits = self._logits(parts)
        raw = sample_on_device(logits, self.rows, self.vocabulary, self.filters, self.forbids)
        active = self.rows.active
        self.rows.counter += active
        for models, step in zip(self.models, self.inputs, strict=True):
            of_models = len(models)
            step.inputs[0].copy_(_repeated(raw.tokens * active, of_models))
            step.inputs[1].add_(_repeated(active, of_models))
        return packed(raw).T.contiguous()

    def _logits(self, parts: Sequence[StepPart]) -> list[Tensor]:
        """Per model, (B, V) float32, the passes of different parts side by side."""
        found: dict[int, Tensor] = {}
        here: Any = torch.cuda.current_stream(self.rows.active.device) if self._streams else None
        for stream in self._streams:
            stream.wait_stream(here)
        for i, (part, step) in enumerate(zip(parts, self.inputs, strict=True)):
            with ExitStack() as stack:
                if i and self._streams:
                    stack.enter_context(torch.cuda.stream(self._streams[i - 1]))
                stack.enter_context(part.active())
                logits = part.runner.logits_of(step)[:, 0]
            for model, own in zip(
                part.models, rearrange(logits, "(b m) v -> m b v", m=len(part.models)), strict=True
            ):
                found[model] = own
        for stream in self._streams:
            here.wait_stream(stream)
        return [found[model] for model in sorted(found)]

    def write(self, state: RowState) -> None:
        """Put what the host knows of the rows on the device; the other rows only fill up."""
        count, batch = len(state.tokens), self.rows.active.shape[0]
        vacant = DeviceRows.vacant(self.rows.weights.shape[0], batch - count, self.rows.active.device)
        for target, rest, given in zip(
            self.rows.tensors(), vacant.tensors(), state.device_rows.tensors(), strict=True
        ):
            axis = 1 if target is self.rows.weights else 0
            target.copy_(torch.cat([given.to(target), rest], dim=axis))
        for models, step in zip(self.models, self.inputs, strict=True):
            spare = [0] * ((batch - count) * len(models))
            tokens = [token for token in state.tokens for _ in models]
            lengths = [state.lengths[model][row] for row in range(count) for model in models]
            step.inputs.copy_(
                to_device([[*tokens, *spare], [*lengths, *spare]], torch.int64, step.inputs.device)
            )


def _repeated(values: Tensor, times: int) -> Tensor:
    """(B,) to (B · times,), each value several times in a row."""
    return values[:, None].expand(-1, times).reshape(-1)


class Flight:
    """What a launched step sampled, on its way to the host."""

    def __init__(self, packed_sample: Tensor) -> None:
        self._event: Any = None
        make_event: Any = torch.cuda.Event
        if packed_sample.is_cuda:
            self._host = torch.empty(packed_sample.shape, dtype=packed_sample.dtype, pin_memory=True)
            self._host.copy_(packed_sample, non_blocking=True)
            self._event = make_event()
            self._event.record(torch.cuda.current_stream(packed_sample.device))
        else:
            self._host = packed_sample.clone()

    def wait(self) -> RawSample:
        """The sample, on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return unpacked(self._host.T)


class PairLoop:
    """Launches captured steps over the rows of a pair's runners.

    Args:
        parts: the runners.
        vocabulary: (V,) bool on their device.
    """

    def __init__(self, parts: Sequence[StepPart], vocabulary: Tensor) -> None:
        self.parts, self.vocabulary = list(parts), vocabulary
        self._step: PairStep | None = None
        self._longest = 0  # positions that the longest row has filled
        self._lengths: list[list[int]] = []

    @torch.inference_mode()
    def begin(self, state: RowState) -> None:
        """Prepare steps of these rows; captures one if there is none that fits.

        Raises:
            CaptureError: the step cannot be captured; nothing has changed.
        """
        self._longest = max(map(max, state.lengths))
        self._lengths = [list(lengths) for lengths in state.lengths]
        count = len(state.tokens)
        for part in self.parts:
            part.runner.make_room(count * len(part.models), self._longest + 1)
        self._step = self._find(state, count)

    def _find(self, state: RowState, count: int) -> PairStep:
        steps = self.parts[0].runner.buffers.pair_steps
        for part in self.parts[1:]:
            part.runner.buffers.pair_steps = steps
        for key in [key for key, step in steps.items() if not step.is_current(self.parts)]:
            del steps[key]
        key = (
            bucket(count),
            bucket(self._longest + 1, cuda_graph.MIN_CAPACITY),
            state.filters,
            state.forbids,
        )
        step = steps.get(key)
        if step is None:
            self._set_lengths()
            step = PairStep(self.parts, *key[:2], self.vocabulary, state.filters, state.forbids)
            step.write(state)
            step.rows.active.zero_()  # the runs before the capture stay where they are, and write what belongs there
            other = next((each.replay for each in steps.values()), None)
            try:
                step.replay = self.parts[0].runner.capture_step(
                    partial(step.body, self.parts), key[:2], other
                )
            except (EngineError, UnsupportedLayersError) as error:
                raise CaptureError(str(error)) from error
            steps[key] = step
        steps.move_to_end(key)
        while len(steps) > MAX_PAIR_STEPS:
            steps.popitem(last=False)
        step.write(state)
        return step

    def fits_next(self) -> bool:
        """Whether one more step can be launched without `begin`."""
        if self._step is None:
            return False
        room = min(part.runner.cache.reserved[1] for part in self.parts)
        return self._longest < min(self._step.capacity, room)

    @torch.inference_mode()
    def launch(self) -> Flight:
        """Launch a step, and do not wait for it."""
        assert self._step is not None
        flight = Flight(self._step.replay())
        self._longest += 1
        self._lengths = [[length + 1 for length in lengths] for lengths in self._lengths]
        self._set_lengths()
        return flight

    def _set_lengths(self) -> None:
        """Tell the caches how far their rows are written."""
        for part in self.parts:
            count = len(self._lengths[0])
            part.runner.cache.lengths = [self._lengths[m][row] for row in range(count) for m in part.models]


def captured_loop(runner: PairRunner, vocabulary: Tensor) -> PairLoop | None:
    """A loop over a pair's runners, or None where they are not captured, not on one device, or not captured as one."""
    if runner.step_failures:
        return None
    parts = runner.step_parts()
    if not all(isinstance(part[0], GraphModelRunner) for part in parts):
        return None
    if len({part[0].device for part in parts}) != 1:
        return None
    return PairLoop([StepPart(*part) for part in parts], vocabulary.to(parts[0][0].device))
