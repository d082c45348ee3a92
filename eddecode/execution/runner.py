"""Runners: new tokens in, next-token logits in float32 out, for one model and for a pair.

A `ModelRunner` (`interfaces`) executes one model over slots, which are the rows of a batch. A `PairRunner` keeps one of
them per model in step: (tokens, slots) → (base logits, aligned logits). Runners know nothing of sampling, and nothing
of requests.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eddecode.execution.attention import AttentionMaskBuilder, attention_in, can_attend
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.interfaces import ModelExecution, ModelRunner, PrefillResult
from eddecode.execution.kv_cache import BatchedKVCache
from eddecode.execution.packing import PACKED_CHUNK, PackedTexts
from eddecode.execution.patching import Float32LMHead, patched_forward, triton_runs
from eddecode.execution.row_parts import RowPart
from eddecode.models.rotary import rope_window
from eddecode.models.sizes import PREFILL_CHUNK, input_device, kv_bytes_per_token
from eddecode.utils.device import copy_to_device

if TYPE_CHECKING:
    from eddecode.models.ensemble import ModelGroup

# transformers 5.24 renames this argument, and warns at every pass of a model; earlier releases know the old name only.
warnings.filterwarnings("ignore", message="`past_key_values` is deprecated", category=FutureWarning)


StepParts = tuple[Any, tuple[int, ...], Callable[[], AbstractContextManager[Any]], int | None]


class CachedModelRunner:
    """Runs a model whose layers write keys and values to a cache and attend over a mask.

    Args:
        model: a causal LM.
        dense_mask: use the model's own attention over a dense mask, even where compiled attention could serve.
        layers: the model's compiled modules; runners of one model share them.

    Attributes:
        serves_ragged_passes: whether one pass may run rows of different lengths.
    """

    serves_ragged_passes = True

    def __init__(
        self, model: Any, *, dense_mask: bool = False, layers: CompiledModules | None = None
    ) -> None:
        self.model = model
        self.layers = CompiledModules(model) if layers is None else layers  # which may be empty
        self.cache = BatchedKVCache()
        self.head = Float32LMHead(model, self.layers.head_delta, compiled=self.layers.operations)
        self.masks = AttentionMaskBuilder(model.config.get_text_config())
        self.dense_mask = dense_mask or not (can_attend(model) or self.layers.all_layers)
        self.device = input_device(model)

    def clone_empty(self) -> CachedModelRunner:
        """A runner of the same model with no slot occupied."""
        return type(self)(self.model, dense_mask=self.dense_mask, layers=self.layers)

    @torch.inference_mode()
    def prefill(self, texts: Sequence[tuple[int, ...]]) -> list[PrefillResult]:
        """Run texts chunk by chunk, packed or padded on the right to the longest; see `ModelRunner.prefill`."""
        if self.layers.tile_tokens is not None and not self.dense_mask:
            return self._prefill_packed(texts)
        cache = BatchedKVCache()
        cache.lengths = [0] * len(texts)
        longest = max(len(text) for text in texts)
        cache.reserve(len(texts), longest)
        padded = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts])
        logits: list[Tensor | None] = [None] * len(texts)
        for start in range(0, longest, PREFILL_CHUNK):
            chunk = padded[:, start : start + PREFILL_CHUNK]
            # (B,) where texts end, relative to this chunk:
            last = torch.tensor([len(text) - 1 - start for text in texts])
            after = self._forward(cache, chunk, last.clamp(0, chunk.shape[1] - 1)[:, None])  # (B, 1, V)
            for row, end in enumerate(last.tolist()):
                if 0 <= end < chunk.shape[1]:
                    logits[row] = after[row, 0].clone()
            cache.advance([chunk.shape[1]] * len(texts))
        return [
            PrefillResult(len(text), z, cache.export_prefix(row, len(text)), text)
            for row, (text, z) in enumerate(zip(texts, logits, strict=True))
            if z is not None
        ]

    def _prefill_packed(self, texts: Sequence[tuple[int, ...]]) -> list[PrefillResult]:
        """Run texts one after another in one row, without padding; each text's states are a part of that row."""
        packed = PackedTexts(texts)
        cache = BatchedKVCache()
        cache.lengths = [0]
        cache.reserve(1, packed.total)
        logits: list[Tensor] = []
        for start in range(0, packed.total, PACKED_CHUNK):
            stop = min(start + PACKED_CHUNK, packed.total)
            ends = packed.ends_within(start, stop)
            positions = torch.tensor([[end - start for end in ends] or [0]])
            with self.head.selecting(positions):
                inputs = self._packed_inputs(cache, packed, start, stop)
                result = self._call(self.model, inputs)
            after = self.head.select(result.logits, positions)[0]  # (K, V)
            logits += list(after[: len(ends)])
            cache.advance([stop - start])
        row = cache.packed_row()
        return [
            PrefillResult(stop - start, z, RowPart(row, start, stop), text)
            for (start, stop), text, z in zip(packed.spans, texts, logits, strict=True)
        ]

    def _packed_inputs(
        self, cache: BatchedKVCache, packed: PackedTexts, start: int, stop: int
    ) -> dict[str, Any]:
        """The arguments of the model for the tokens start … stop−1 of packed texts."""
        cache.prepare_write(stop - start)
        tiles = packed.tiles(start, stop, self.layers.tile_tokens or 1)
        ids, positions, origins, tiles = (
            copy_to_device(each, self.device)
            for each in (
                *(each[None, start:stop] for each in (packed.ids, packed.positions, packed.origins)),
                tiles,
            )
        )
        return {
            "input_ids": ids,
            "attention_mask": self.masks.packed_key_ranges(positions, origins, tiles),
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
        }

    @property
    def occupied(self) -> int:
        """See `ModelRunner.occupied`."""
        return len(self.cache.lengths)

    @torch.inference_mode()
    def reserve(self, slots: int, positions: int = 0) -> None:
        """See `ModelRunner.reserve`."""
        self.cache.reserve_lazily(slots, positions)

    @torch.inference_mode()
    def add(self, prefix: PrefillResult) -> None:
        """See `ModelRunner.add`."""
        self.cache.add(prefix.states)

    @torch.inference_mode()
    def add_all(self, prefixes: Sequence[PrefillResult]) -> None:
        """Occupy the next slots with rows that begin with these prefixes: in one launch on a GPU."""
        self.cache.add_all([prefix.states for prefix in prefixes])

    @torch.inference_mode()
    def remove(self, slot: int) -> None:
        """See `ModelRunner.remove`."""
        self.cache.remove(slot)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, slots: slice = slice(None)) -> Tensor:
        """See `ModelRunner.forward`; `slots` picks some of the occupied slots, (n, T) tokens for them."""
        count, new = tokens.shape
        everywhere = torch.arange(new).expand(count, new)
        logits = self._forward(self.cache, tokens, everywhere, slots)
        self.cache.advance([new] * count, slots)
        return logits

    def rows_held(self, count: int) -> int:
        """Rows that its buffers have where that many slots are occupied."""
        return count

    def truncate(self, lengths: Sequence[int]) -> None:
        """See `ModelRunner.truncate`."""
        self.cache.lengths = list(lengths)

    @torch.inference_mode()
    def trim(self) -> None:
        """See `ModelRunner.trim`."""
        self.cache.trim()

    def _forward(
        self, cache: BatchedKVCache, tokens: Tensor, positions: Tensor, slots: slice = slice(None)
    ) -> Tensor:
        """Run the model over (B, T) new tokens; logits (B, K, V) float32 after those at the indices (B, K)."""
        with self.head.selecting(positions):
            result = self.run_patched(self.model, cache, tokens, slots)
        return self.head.select(result.logits, positions)

    def run_patched(
        self, part: Any, cache: BatchedKVCache, tokens: Tensor, slots: slice = slice(None)
    ) -> Any:
        """What `part`, the model or its body without the head, returns for (B, T) new tokens of slots of a cache."""
        return self._call(part, self._inputs(cache, tokens, slots))

    def _call(self, part: Any, inputs: dict[str, Any]) -> Any:
        attention: AbstractContextManager[None] = nullcontext()
        if not (self.dense_mask or self.layers.handles_attention):
            attention = attention_in(self.masks.config)
        with patched_forward(self.layers.forwards), attention:
            return part(**inputs)

    def _inputs(self, cache: BatchedKVCache, tokens: Tensor, slots: slice) -> dict[str, Any]:
        """Begin a pass over the cache, and make the arguments of the model for it."""
        write = cache.prepare_write(tokens.shape[1], slots)
        positions = write.positions
        if self.device.type != "cpu":
            tokens, positions = (copy_to_device(each, self.device) for each in (tokens, positions))
        mask: Any
        if self.dense_mask:
            mask = self.masks.build(positions, write.end, self.model.dtype)
        else:
            mask = self.masks.key_ranges(positions)
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
        }


@contextmanager
def all_or_none(runners: Sequence[ModelRunner]) -> Iterator[None]:
    """Rows that enter these runners within the block leave them again if it fails."""
    before = [runner.occupied for runner in runners]
    try:
        yield
    except BaseException:
        for runner, count in zip(runners, before, strict=True):
            while runner.occupied > count:
                runner.remove(runner.occupied - 1)
        raise


class PairRunner:
    """Runs the models of a pair over shared slots; occupied slots are 0 … n−1.

    A slot is the same row in all models, though they read different prompts and are at different positions.
    `factory.runner_for` makes one.

    Args:
        pair: the models.
        model_runners: one per model.
        reasons: per model, see `ModelExecution.reason`.

    Attributes:
        step_failures: why the models' steps cannot be captured as one; engines of this runner and its clones share it.
        draft_failures: why they cannot with drafts.
    """

    def __init__(
        self, pair: ModelGroup, model_runners: Sequence[ModelRunner], reasons: Sequence[str] = ()
    ) -> None:
        self.reasons = list(reasons) or [""] * len(model_runners)
        self.step_failures: list[str] = []
        self.draft_failures: list[str] = []
        self.names, self.device = pair.names, pair.device
        self.models, self._context_windows = pair.models, pair.context_windows
        self.model_runners = list(model_runners)
        largest = [int(model.get_input_embeddings().weight.shape[0]) - 1 for model in self.models]
        # Per model, the id that stands for those it has no embedding for. Such an id is sampled only where the model
        # has no weight, and what it makes of the text is not used.
        self._largest_ids = [each if each < max(largest) else None for each in largest]

    @property
    def windows(self) -> list[int | None]:
        """Per model, the longest text that it can be decoded on; None where there is no limit."""
        limits = [
            [limit for limit in (window, rope_window(model)) if limit is not None]
            for window, model in zip(self._context_windows, self.models, strict=True)
        ]
        return [min(limit, default=None) for limit in limits]

    @property
    def separate_runners(self) -> list[ModelRunner]:
        """One runner per model on its own weights, also where this runner decodes both in one pass."""
        return self.model_runners

    @property
    def execution(self) -> list[ModelExecution]:
        """How each model is run."""
        runners = {model: runner for runner, models, *_ in self.step_parts() for model in models}
        failures = [*self.step_failures, *self.draft_failures]
        return [
            _execution_of(name, runners[model], self.device, [self.reasons[model], *failures])
            for model, name in enumerate(self.names)
        ]

    def clone_empty(self) -> PairRunner:
        """The same models with no slot occupied.

        Every engine gets one of its own: two engines that decode in turns, or one that was abandoned half-way, would
        otherwise leave their rows in each other's slots.
        """
        other = copy.copy(self)
        other.model_runners = [runner.clone_empty() for runner in self.model_runners]
        return other

    def prefill(self, model: int, texts: Sequence[tuple[int, ...]]) -> list[PrefillResult]:
        """Run one model over texts, in one padded batch, without touching a slot."""
        largest, known = self._largest_ids[model], texts
        if largest is not None:
            known = [tuple(min(i, largest) for i in text) for text in texts]
        prefixes = self.model_runners[model].prefill(known)
        for prefix, text in zip(prefixes, texts, strict=True):
            prefix.logits = prefix.logits.to(self.device)
            prefix.ids = text
        return prefixes

    def reserve(self, slots: int, positions: Sequence[int] = ()) -> None:
        """Have room for that many rows, so that adding them does not grow the buffers one by one.

        Args:
            slots: rows.
            positions: per model, how many positions a row may come to have; empty if that is not known.
        """
        for runner, most in zip(self.model_runners, positions or [0] * len(self.model_runners), strict=True):
            runner.reserve(slots, most)

    def rows_held(self, count: int) -> int:
        """Rows that the buffers of some model have where that many slots are occupied."""
        cached = (runner for runner in self.model_runners if isinstance(runner, CachedModelRunner))
        return max((runner.rows_held(count) for runner in cached), default=count)

    def kept_bytes(self, device: torch.device) -> int:
        """Bytes of the buffers on a device that earlier runners left, and that clones of this one begin with."""
        runners = [part[0] for part in self.step_parts() if getattr(part[0], "device", None) == device]
        return sum(
            buffers.cache.nbytes() for runner in runners for buffers in getattr(runner, "free_buffers", ())
        )

    @property
    def token_bytes(self) -> int | None:
        """Bytes of the keys and values of one position in all models, by their configurations; None if unknown."""
        known = [size for size in map(kv_bytes_per_token, self.models) if size is not None]
        return sum(known) if len(known) == len(self.models) else None

    def add(self, prefixes: Sequence[PrefillResult]) -> None:
        """Occupy the next slot with a row that begins with one prefix per model: in all models, or in none."""
        with all_or_none(self.model_runners):
            for runner, prefix in zip(self.model_runners, prefixes, strict=True):
                runner.add(prefix)

    @property
    def adds_together(self) -> bool:
        """Whether rows enter in one launch (`add_all`): on a GPU every copy is a launch."""
        return all(
            isinstance(runner, CachedModelRunner) and triton_runs(runner.device, runner.model.dtype)
            for runner in self.model_runners
        )

    def add_all(self, rows: Sequence[Sequence[PrefillResult]]) -> None:
        """Occupy the next slots, as `add` does one; a GPU copies all of a model's states in one launch."""
        columns = list(zip(*rows, strict=True))
        with all_or_none(self.model_runners):
            for runner, prefixes in zip(self.model_runners, columns, strict=False):
                runner.add_all(prefixes)  # type: ignore[attr-defined]

    def step_parts(self) -> list[StepParts]:
        """Runners, the models that each runs, what holds while it runs both, its largest id: `pair_step.StepPart`."""
        return [
            (runner, (model,), nullcontext, self._largest_ids[model])
            for model, runner in enumerate(self.model_runners)
        ]

    def remove(self, slot: int) -> None:
        """Vacate a slot; the last occupied one moves into its place."""
        for runner in self.model_runners:
            runner.remove(slot)

    def forward(self, tokens: Tensor, lengths: Sequence[Sequence[int]]) -> list[Tensor]:
        """Append tokens to every row, in all models.

        Args:
            tokens: (n, T) int64, those of each occupied slot.
            lengths: per model, how many tokens each row had before. A pass that failed half-way is repeated from there.

        Returns:
            Per model (n, T, V_i) float32: the logits after each token.
        """
        return [self.forward_model(model, tokens, before) for model, before in enumerate(lengths)]

    def forward_model(self, model: int, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Append (n, T) tokens to every row of one model, of the given lengths before; logits after each, (n, T, V)."""
        runner = self.model_runners[model]
        if (largest := self._largest_ids[model]) is not None:
            tokens = tokens.clamp(max=largest)
        runner.truncate(lengths)
        return runner.forward(tokens).to(self.device)

    @cached_property
    def num_parameters(self) -> int:
        """Parameters that a step reads, of all models."""
        return sum(p.numel() for model in self.models for p in model.parameters())

    @cached_property
    def base_share(self) -> float:
        """The base model's share of these parameters: about its share of a step's time."""
        return float(sum(p.numel() for p in self.models[0].parameters()) / self.num_parameters)

    def trim(self) -> None:
        """Give back memory that the occupied slots do not need."""
        for runner in self.model_runners:
            runner.trim()


def _execution_of(name: str, runner: Any, device: torch.device, reasons: Sequence[str]) -> ModelExecution:
    device = getattr(runner, "device", device)
    layers: CompiledModules | None = getattr(runner, "layers", None)
    record = getattr(runner, "record", None)  # of captures
    refusal = "" if record is None else record.refusal
    return ModelExecution(
        name,
        str(device),
        0 if layers is None else layers.num_layers,
        record is not None and not refusal,
        layers is not None and layers.all_layers,
        "; ".join(filter(None, [*reasons, refusal])),
    )
