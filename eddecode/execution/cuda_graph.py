"""GraphModelRunner: a `CachedModelRunner` whose step of one token per row is a captured graph.

A step of a large model is some thousand kernels of a few microseconds each, and launching them from Python takes longer
than running them. Captured once, all of them are launched in one call. What a graph needs is that nothing moves: tokens
and positions are written into buffers of their own, keys and values stay where the `BatchedKVCache` has them, the mask
is computed on the device from the positions, and attention goes over the first `capacity` keys, whichever are seen.

So there is a step for each number of rows and each capacity, both rounded up to powers of two, captured when it is
first needed. Rows that only fill up read token 0 at position 0 of a vacant slot: nobody looks at what they give, and
whoever enters the slot overwrites what they wrote. Prompts, several tokens at a time and some of the slots go the plain
way. One graph per model, and not one for both: a launch more costs microseconds, and each model keeps its own trial.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from eddecode.errors import EngineError, UnsupportedLayersError
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.cuda_graph_capture import CudaGraph, GraphCapture, GraphReplay
from eddecode.execution.kv_cache import BatchedKVCache, WritePositions
from eddecode.execution.runner import CachedModelRunner, PrefillResult
from eddecode.utils.device import to_device
from eddecode.utils.memory import free_bytes, is_out_of_memory

READ = 128  # keys that a step reads at least
ROOM = 256  # positions that buffers have at least: growing throws the captured steps away
MOST_STEPS = 16  # captured at a time; the one used longest ago goes
KEPT = 1 / 8  # of the free memory: larger buffers are not kept for the next decoder


def bucket(needed: int, least: int = 1) -> int:
    """The smallest power of two that is at least `needed` and `least`."""
    return max(least, 1 << max(needed - 1, 0).bit_length())


class StaticKVCache(BatchedKVCache):
    """The buffers of a cache, written at places that the device is told, and the host does not know."""

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
        cache: the decoder's buffers, written at those positions.
        replay: the step, once it is captured.
    """

    replay: GraphReplay

    def __init__(self, cache: BatchedKVCache, rows: int, capacity: int, device: torch.device) -> None:
        self.inputs = torch.zeros(2, rows, dtype=torch.int64, device=device)
        places = WritePositions(rearrange(self.inputs[1], "b -> b 1"), slice(0, rows), capacity, None)
        self.cache = StaticKVCache(cache, places)

    def fill(self, tokens: Tensor, lengths: Sequence[int]) -> None:
        """Say what the rows read next: tokens (n,), and the lengths before; the other rows fill up."""
        n, rows = len(lengths), self.inputs.shape[1]
        known = tokens.tolist() if tokens.device.type == "cpu" else [0] * n
        spare = [0] * (rows - n)
        self.inputs.copy_(to_device([[*known, *spare], [*lengths, *spare]], torch.int64, self.inputs.device))
        if tokens.device.type != "cpu":
            self.inputs[0, :n] = tokens


@dataclass
class GraphBuffers:
    """Buffers that stay where they are, and the steps that were captured over them, the one used last at the end."""

    cache: BatchedKVCache = field(default_factory=BatchedKVCache)
    keys: Any = None  # the first layer's: another tensor means that the buffers have moved
    steps: OrderedDict[tuple[int, int], CapturedStep] = field(default_factory=OrderedDict)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers and of what the captures took."""
        return self.cache.nbytes() + sum(step.replay.nbytes for step in self.steps.values())

    @torch.inference_mode()
    def cleaned(self) -> GraphBuffers:
        """The same with nothing in it: what no row has written is masked, but a NaN would come through."""
        self.cache.lengths = []
        for layer in self.cache.layers:
            layer.keys.zero_()
            layer.values.zero_()
        return self


class GraphModelRunner(CachedModelRunner):
    """Decodes like a `CachedModelRunner`, the step of one token per row by captured graphs.

    Args:
        model: on one device.
        capture: how steps are captured.
        layers: see `CachedModelRunner`.
        idle: where decoders of the same model leave their buffers, and what is captured over them, to the next one.
    """

    def __init__(
        self,
        model: Any,
        capture: GraphCapture = CudaGraph,
        *,
        layers: CompiledModules | None = None,
        idle: list[GraphBuffers] | None = None,
    ) -> None:
        super().__init__(model, dense_mask=True, layers=layers)
        self.capture = capture
        self.idle = [] if idle is None else idle
        self.held = self.idle.pop().cleaned() if self.idle else GraphBuffers()
        self.cache = self.held.cache
        most = int(KEPT * free_bytes(self.device))
        weakref.finalize(self, _leave, self.held, self.idle, most).atexit = False

    def clone_empty(self) -> GraphModelRunner:
        """See `CachedModelRunner.clone_empty`."""
        return GraphModelRunner(self.model, self.capture, layers=self.layers, idle=self.idle)

    @torch.inference_mode()
    def reserve(self, slots: int, positions: int = 0) -> None:
        """See `ModelRunner.reserve`; on a device positions to come would take memory now."""
        self._make_room(slots, 0)

    @torch.inference_mode()
    def add(self, prefix: PrefillResult) -> None:
        """See `ModelRunner.add`."""
        self._make_room(self.occupied + 1, prefix.length + 1)
        super().add(prefix)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, slots: slice = slice(None)) -> Tensor:
        """See `CachedModelRunner.forward`."""
        lengths = self.cache.lengths[slots]
        self._make_room(self.occupied, max(lengths) + tokens.shape[1])
        if tokens.shape[1] != 1 or len(lengths) != self.occupied:
            return super().forward(tokens, slots)
        replay = self._step(tokens[:, 0], lengths).replay
        logits = replay()[: len(lengths)].clone()  # the next step overwrites them
        self.cache.advance([1] * len(lengths))
        return logits

    @torch.inference_mode()
    def trim(self) -> None:
        """See `ModelRunner.trim`; the steps are captured anew when they are needed."""
        self.held.steps.clear()
        self.idle.clear()
        super().trim()

    def _make_room(self, rows: int, positions: int) -> None:
        self.cache.reserve(bucket(rows), bucket(positions, ROOM))
        keys = self.cache.layers[0].keys if self.cache.layers else None
        if keys is not self.held.keys:
            self.held.steps.clear()
            self.held.keys = keys

    def _step(self, tokens: Tensor, lengths: Sequence[int]) -> CapturedStep:
        """The step for these rows, filled with them, captured if it has not been."""
        steps, key = self.held.steps, (bucket(len(lengths)), bucket(max(lengths) + 1, READ))
        step = steps.get(key) or CapturedStep(self.cache, *key, self.device)
        step.fill(tokens, lengths)  # before the capture: warming up must write where it belongs
        if key not in steps:
            self._capture(step, key)
            steps[key] = step
        steps.move_to_end(key)
        while len(steps) > MOST_STEPS:
            steps.popitem(last=False)
        return step

    def _capture(self, step: CapturedStep, key: tuple[int, int]) -> None:
        if any(hasattr(module, "_hf_hook") for module in self.model.modules()):
            raise UnsupportedLayersError("weights that are moved as they are needed, or on several devices")
        beside = next((other.replay for other in self.held.steps.values()), None)
        try:
            step.replay = self.capture(lambda: self._logits(step), beside)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise EngineError(
                f"the step of {key[0]} rows over {key[1]} positions cannot be captured "
                f"({str(error).splitlines()[0]}); decode without cuda_graphs"
            ) from error

    def _logits(self, step: CapturedStep) -> Tensor:
        """Logits after the step's tokens, (rows, 1, V) float32."""
        tokens = rearrange(step.inputs[0], "b -> b 1")
        return self._forward(step.cache, tokens, torch.zeros_like(tokens))


def _leave(held: GraphBuffers, idle: list[GraphBuffers], most: int) -> None:
    """A decoder is gone: keep the largest buffers for the next one, of those that take at most `most` bytes."""
    fitting = [each for each in (*idle, held) if each.nbytes <= most]
    idle[:] = sorted(fitting, key=lambda each: each.nbytes)[-1:]
