"""GraphModelRunner: a `CachedModelRunner` whose step of one token per row is a captured CUDA graph.

A step of a large model is some thousand kernels of a few microseconds each, and launching them from Python takes longer
than running them. Captured once, all of them are launched in one call. A graph repeats the same launches on the same
addresses, so nothing may move: tokens and positions are written into buffers of their own, keys and values stay where
the `BatchedKVCache` has them, the mask is computed on the device from the positions, and attention goes over the first
`capacity` keys, whichever are seen. And a step can be captured only if its course depends on shapes alone: no branch on
a value, no result whose size depends on one, nothing fetched by the host (`capture`).

There is one graph for each number of rows and each capacity, both rounded up to powers of two, captured when it is
first needed. Rows that only fill up read token 0 at position 0 of a vacant slot: nobody uses what they give, and a row
that enters the slot overwrites what they wrote. Prompts, several tokens at a time and some of the slots run without a
graph. Each model has graphs of its own: one more launch costs microseconds, and each model keeps its own self-check.
"""

from __future__ import annotations

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from eddecode.errors import EngineError, UnsupportedLayersError
from eddecode.execution.capture import CudaGraph, GraphCapture, GraphReplay, StepBody
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.interfaces import PrefillResult
from eddecode.execution.kv_cache import LENGTH_STEP, BatchedKVCache, WritePositions
from eddecode.execution.runner import CachedModelRunner
from eddecode.models.sizes import has_accelerate_hooks
from eddecode.utils.device import to_device
from eddecode.utils.memory import free_bytes, is_out_of_memory, register_idle

MIN_CAPACITY = 128  # keys that a step reads at least
MIN_BUFFER_POSITIONS = 256  # positions that buffers have at least: growing throws the captured graphs away
MAX_GRAPHS = 16  # captured at a time; the one used longest ago goes
MAX_KEPT_FRACTION = 1 / 4  # of the free memory: larger buffers of a model are not kept for its next runner


@contextmanager
def capturable_experts(model: Any) -> Iterator[None]:
    """Within the block a mixture of experts multiplies in a form that needs nothing from the host.

    Grouped products do so on a GPU for bfloat16 from Hopper on; in all other cases torch fetches the groups' offsets to
    the CPU. transformers decodes by batched products for the same reason.
    """
    config = model.config.get_text_config()
    before = getattr(config, "_experts_implementation", None)
    grouped = (
        model.device.type == "cuda"
        and model.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(model.device) >= (9, 0)
    )
    if before != "grouped_mm" or grouped:
        yield
        return
    config._experts_implementation = "batched_mm"
    try:
        yield
    finally:
        config._experts_implementation = before


# Running -----------------------------------------------------------------------------------------------------------


def bucket(needed: int, least: int = 1) -> int:
    """The smallest power of two that is at least `needed` and `least`."""
    return max(least, 1 << max(needed - 1, 0).bit_length())


class StaticKVCache(BatchedKVCache):
    """The buffers of a cache, written at positions that are in a tensor on the device, unknown to the host."""

    def __init__(self, cache: BatchedKVCache, write: WritePositions) -> None:
        super().__init__()
        self.layers, self._write = cache.layers, write

    def prepare_write(self, new: int, slots: slice = slice(None)) -> WritePositions:
        """See `BatchedKVCache.prepare_write`; the positions are always in the same tensor."""
        for layer in self.layers:
            layer.write = self._write
        return self._write


class CapturedStep:
    """One token for each of the first `rows` slots, over the first `capacity` positions.

    Attributes:
        inputs: (2, rows) int64 on the model's device: tokens, and the positions that they are written at.
        cache: the runner's buffers, written at those positions.
        replay: the step, once it is captured.
    """

    replay: GraphReplay

    def __init__(self, cache: BatchedKVCache, rows: int, capacity: int, device: torch.device) -> None:
        self.inputs = torch.zeros(2, rows, dtype=torch.int64, device=device)
        write = WritePositions(rearrange(self.inputs[1], "b -> b 1"), slice(0, rows), capacity, None)
        self.cache = StaticKVCache(cache, write)

    def fill(self, tokens: Tensor, lengths: Sequence[int]) -> None:
        """Set the inputs: tokens (n,), and the rows' lengths before them; the other rows only fill up."""
        n, rows = len(lengths), self.inputs.shape[1]
        known = tokens.tolist() if tokens.device.type == "cpu" else [0] * n
        spare = [0] * (rows - n)
        self.inputs.copy_(to_device([[*known, *spare], [*lengths, *spare]], torch.int64, self.inputs.device))
        if tokens.device.type != "cpu":
            self.inputs[0, :n] = tokens


@dataclass(eq=False)
class GraphBuffers:
    """Buffers that stay where they are, and the steps that were captured over them, the one used last at the end."""

    cache: BatchedKVCache = field(default_factory=BatchedKVCache)
    keys: Any = None  # the first layer's: another tensor means that the buffers have moved
    steps: OrderedDict[tuple[int, int], CapturedStep] = field(default_factory=OrderedDict)
    pair_steps: OrderedDict[Any, Any] = field(
        default_factory=OrderedDict
    )  # see `eddecode.execution.pair_step`

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers and of the captures."""
        captured = [*self.steps.values(), *self.pair_steps.values()]
        return self.cache.nbytes() + sum(int(step.replay.nbytes) for step in captured)

    def forget_steps(self) -> None:
        """Drop what was captured over them."""
        self.steps.clear()
        self.pair_steps.clear()  # which the other model's buffers may keep, and with them these

    @torch.inference_mode()
    def cleared(self) -> GraphBuffers:
        """The same buffers filled with zeros: what no row has written is masked, but a NaN would survive the mask."""
        self.cache.lengths = []
        for layer in self.cache.layers:
            layer.keys.zero_()
            layer.values.zero_()
        return self


class IdleBuffers(list[GraphBuffers]):
    """Buffers that the next runner of a model begins with; dropped where memory is short, whoever needs it."""

    def __init__(self) -> None:
        super().__init__()
        register_idle(self)

    def release(self) -> None:
        """Drop them, and the steps that were captured over them."""
        while self:
            self.pop().forget_steps()


@dataclass(eq=False)
class CaptureRecord:
    """How the captures of a model's steps went, for all of its runners.

    Attributes:
        count: of those that succeeded.
        refusal: why steps are launched from Python from then on; empty while they are captured.
    """

    count: int = 0
    refusal: str = ""


class GraphModelRunner(CachedModelRunner):
    """Runs like a `CachedModelRunner`, the step of one token per row by captured graphs.

    Args:
        model: on one device.
        capture: how steps are captured.
        layers: see `CachedModelRunner`.
        free_buffers: where runners of the same model leave their buffers, and the graphs over them, to the next one.
        record: of all runners of the same model. A first capture that fails is an error, so that the model's trial ends
            with it; after a later one steps are launched from Python, with a warning.
    """

    def __init__(
        self,
        model: Any,
        capture: GraphCapture = CudaGraph,
        *,
        layers: CompiledModules | None = None,
        free_buffers: IdleBuffers | None = None,
        record: CaptureRecord | None = None,
    ) -> None:
        super().__init__(model, layers=layers)
        self.record = record or CaptureRecord()
        self.dense_mask = not self.layers.all_layers
        self.capture = capture
        self.free_buffers = IdleBuffers() if free_buffers is None else free_buffers
        self.buffers = self.free_buffers.pop().cleared() if self.free_buffers else GraphBuffers()
        self.cache = self.buffers.cache
        # What it begins with was free for it, and so was about as much for the other model.
        most = int(MAX_KEPT_FRACTION * (free_bytes(self.device) + 2 * self.buffers.nbytes))
        weakref.finalize(self, _recycle, self.buffers, self.free_buffers, most).atexit = False

    @property
    def rounds_up(self) -> bool:
        """Whether its buffers have powers of two as sizes: a dense mask goes over all of a buffer."""
        return self.dense_mask

    def clone_empty(self) -> GraphModelRunner:
        """See `CachedModelRunner.clone_empty`."""
        return GraphModelRunner(
            self.model,
            self.capture,
            layers=self.layers,
            free_buffers=self.free_buffers,
            record=self.record,
        )

    def rows_held(self, count: int) -> int:
        """See `CachedModelRunner.rows_held`: a power of two, as its steps have."""
        return bucket(count)

    @torch.inference_mode()
    def reserve(self, slots: int, positions: int = 0) -> None:
        """See `ModelRunner.reserve`: all positions at once, as a buffer that grows throws the captured steps away."""
        if positions and not self.dense_mask:  # a dense mask reads whole powers of two
            self.cache.reserve(bucket(slots), -(-(positions + 1) // LENGTH_STEP) * LENGTH_STEP)
        self.make_room(slots, 0)

    @torch.inference_mode()
    def add(self, prefix: PrefillResult) -> None:
        """See `ModelRunner.add`."""
        self.make_room(self.occupied + 1, prefix.length + 1)
        super().add(prefix)

    @torch.inference_mode()
    def add_all(self, prefixes: Sequence[PrefillResult]) -> None:
        """See `CachedModelRunner.add_all`."""
        if prefixes:
            longest = max(prefix.length for prefix in prefixes)
            self.make_room(self.occupied + len(prefixes), longest + 1)
            super().add_all(prefixes)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, slots: slice = slice(None)) -> Tensor:
        """See `CachedModelRunner.forward`."""
        lengths = self.cache.lengths[slots]
        self.make_room(self.occupied, max(lengths) + tokens.shape[1])
        step = None
        if tokens.shape[1] == 1 and len(lengths) == self.occupied and not self.record.refusal:
            step = self._step_or_none(tokens[:, 0], lengths)
        if step is None:
            return super().forward(tokens, slots)
        logits = step.replay()[: len(lengths)]
        self.cache.advance([1] * len(lengths))
        return logits

    @torch.inference_mode()
    def trim(self) -> None:
        """See `ModelRunner.trim`; steps are captured again when they are needed."""
        self.buffers.forget_steps()
        self.free_buffers.release()
        super().trim()

    def make_room(self, rows: int, positions: int) -> None:
        """Have room for that many rows and positions; where buffers move, what was captured over them is dropped."""
        slots, capacity = self.cache.reserved
        if rows > slots or positions > capacity:
            wanted = positions if positions <= capacity else bucket(positions, MIN_BUFFER_POSITIONS)
            self.cache.reserve(bucket(rows), wanted)
        keys = self.cache.layers[0].keys if self.cache.layers else None
        if keys is not self.buffers.keys:
            self.buffers.forget_steps()
            self.buffers.keys = keys

    def _step_or_none(self, tokens: Tensor, lengths: Sequence[int]) -> CapturedStep | None:
        """As `_step`; None, with a warning, where it cannot be captured and others could."""
        try:
            return self._step(tokens, lengths)
        except (EngineError, UnsupportedLayersError) as error:
            if not self.record.count:
                raise
            self.record.refusal = (
                f"{self.model.config.model_type}: {error}; steps are launched one by one from now on, which gives the "
                "same and is slower"
            )
            warnings.warn(self.record.refusal, stacklevel=2)
            return None

    def _step(self, tokens: Tensor, lengths: Sequence[int]) -> CapturedStep:
        """The step for these rows, its inputs set, captured if it has not been."""
        steps, key = self.buffers.steps, (bucket(len(lengths)), bucket(max(lengths) + 1, MIN_CAPACITY))
        step = steps.get(key) or CapturedStep(self.cache, *key, self.device)
        step.fill(tokens, lengths)  # before the capture: the warm-up must write where it belongs
        if key not in steps:
            self._capture(step, key)
            steps[key] = step
        steps.move_to_end(key)
        while len(steps) > MAX_GRAPHS:
            steps.popitem(last=False)
        return step

    def _capture(self, step: CapturedStep, key: tuple[int, int]) -> None:
        tokens = rearrange(step.inputs[0], "b -> b 1")
        step.replay = self.capture_step(lambda: self.logits_of(step.cache, tokens), key)
        self.record.count += 1

    def capture_step(self, body: StepBody, key: tuple[int, int]) -> GraphReplay:
        """Capture a step of (rows, positions) `key`.

        Raises:
            UnsupportedLayersError: it cannot be captured.
            EngineError: CUDA refuses it.
        """
        if has_accelerate_hooks(self.model):
            raise UnsupportedLayersError("weights that are moved as they are needed, or on several devices")
        try:
            return self.capture(body)
        except (EngineError, UnsupportedLayersError):
            raise
        except Exception as error:  # of CUDA, of a compiler, or of a library that checks for captures
            if is_out_of_memory(error):
                raise
            why = str(error).splitlines()
            raise EngineError(
                f"the step of {key[0]} rows over {key[1]} positions cannot be captured "
                f"({why[0] if why else type(error).__name__})"
            ) from error

    def logits_of(self, cache: StaticKVCache, tokens: Tensor) -> Tensor:
        """Logits after each of the tokens (rows, T), (rows, T, V) float32: what a captured step is made of."""
        everywhere = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        with capturable_experts(self.model):
            return self._forward(cache, tokens, everywhere)


def _recycle(buffers: GraphBuffers, free_buffers: IdleBuffers, most: int) -> None:
    """Keep the largest buffers of runners that are no longer used, of those that take at most `most` bytes."""
    everything = [*free_buffers, buffers]
    fitting = [each for each in everything if each.nbytes <= most]
    free_buffers[:] = sorted(fitting, key=lambda each: each.nbytes)[-1:]
    for each in everything:
        if each not in free_buffers:
            each.forget_steps()
