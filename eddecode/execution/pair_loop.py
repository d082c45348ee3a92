"""PairLoop: launches the captured steps of a pair, without waiting for what they sample.

The host reads what a step sampled (`Flight`) while the device goes on with the step after it. How far the rows are, the
device alone knows where drafts are in use; the host keeps the most that it can be until the next `begin`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eddecode.errors import EngineError, UnsupportedLayersError
from eddecode.execution import cuda_graph
from eddecode.execution.cuda_graph import GraphModelRunner, bucket
from eddecode.execution.drafted_step import DraftedStep, DraftPlan
from eddecode.execution.pair_step import PairStep, RowState, StepPart
from eddecode.execution.runner import PairRunner
from eddecode.sampling.dispatch import unpacked
from eddecode_kernels.types import RawSample

MAX_PAIR_STEPS = 32  # captured at a time, in memory that they share; the one used longest ago goes
NO_DRAFTS = DraftPlan()


class CaptureError(EngineError):
    """The step of a pair cannot be captured, though those of its models can."""


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
        return unpacked(self._host)


class PairLoop:
    """Launches captured steps over the rows of a pair's runners.

    Args:
        parts: the runners.
        vocabulary: (V,) bool on their device.
    """

    def __init__(self, parts: Sequence[StepPart], vocabulary: Tensor) -> None:
        self.parts, self.vocabulary = list(parts), vocabulary
        self._step: PairStep | None = None
        self._lengths: list[list[int]] = []  # per model, positions that each row may have filled
        self._limits: list[list[int]] = []

    @torch.inference_mode()
    def begin(self, state: RowState, plan: DraftPlan = NO_DRAFTS) -> None:
        """Prepare steps of these rows; captures one if there is none that fits.

        Raises:
            CaptureError: the step cannot be captured; nothing has changed.
        """
        self._lengths = [list(lengths) for lengths in state.lengths]
        self._limits = state.limits
        needed, count = self._most(plan.length + 1), len(state.texts)
        for part in self.parts:
            part.runner.make_room(count * len(part.models), needed)
        self._step = self._find(state, (bucket(count), bucket(needed, cuda_graph.MIN_CAPACITY)), plan)

    def _find(self, state: RowState, size: tuple[int, int], plan: DraftPlan) -> PairStep:
        steps = self.parts[0].runner.buffers.pair_steps
        for part in self.parts[1:]:
            part.runner.buffers.pair_steps = steps
        for key in [key for key, step in steps.items() if not step.is_current(self.parts)]:
            del steps[key]
        key = (*size, *state.kind, plan)
        step = steps.get(key)
        if step is None:
            self._set_lengths()
            how = self.parts, *size, self.vocabulary, *state.kind
            step = DraftedStep(plan, *how) if plan.length else PairStep(*how)
            step.write(state)
            step.rows.active.zero_()  # the runs before the capture stay where they are, and write what belongs there
            try:
                step.replay = self.parts[0].runner.capture_step(partial(step.body, self.parts), size)
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
        return self._most(self._step.width) <= min(self._step.capacity, room)

    @torch.inference_mode()
    def launch(self) -> Flight:
        """Launch a step, and do not wait for it."""
        assert self._step is not None
        flight = Flight(self._step.replay())
        self._lengths = self._after(self._step.width)
        self._set_lengths()
        return flight

    def _after(self, tokens: int) -> list[list[int]]:
        """Per model, positions that each row may have filled when it has read that many more tokens."""
        return [
            [min(length + tokens, limit + 1) for length, limit in zip(lengths, limits, strict=True)]
            for lengths, limits in zip(self._lengths, self._limits, strict=True)
        ]

    def _most(self, tokens: int) -> int:
        return max(map(max, self._after(tokens)))

    def _set_lengths(self) -> None:
        """Tell the caches how far their rows are written."""
        for part in self.parts:
            count = len(self._lengths[0])
            part.runner.cache.lengths = [self._lengths[m][row] for row in range(count) for m in part.models]


def captured_loop(runner: PairRunner, vocabulary: Tensor, *, drafts: bool = False) -> PairLoop | None:
    """A loop over a pair's runners, or None where they are not captured, not on one device, or not captured as one.

    drafts: whether its steps are to have drafts.
    """
    if runner.step_failures or (drafts and runner.draft_failures):
        return None
    parts = runner.step_parts()
    if not all(isinstance(part[0], GraphModelRunner) for part in parts):
        return None
    if len({part[0].device for part in parts}) != 1:
        return None
    return PairLoop([StepPart(*part) for part in parts], vocabulary.to(parts[0][0].device))
