"""Loading the checkpoints of one contrast together.

All files are opened and checked before any weight is read; memory is estimated before it is taken; and tensors that are
identical to the bit are held once, which can only be found when all models are there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eddecode.errors import PairError
from eddecode.models.adapters import load_merged_adapter
from eddecode.models.checkpoint import Checkpoint, open_checkpoint
from eddecode.models.diagnostics import Diagnostic
from eddecode.models.load_config import LoadConfig
from eddecode.models.loader import load_model, read_causal_config
from eddecode.models.memory_estimate import DEFAULT_LENGTH, check_fits
from eddecode.models.placement import on_own_gpus
from eddecode.models.quantized import one_sided_note
from eddecode.models.rotary import use_long_rope
from eddecode.models.sizes import format_bytes, weights_bytes
from eddecode.models.tokenizer_files import read_tokenizer
from eddecode.models.weight_sharing import share_identical
from eddecode.utils.memory import release_idle

_log = logging.getLogger(__name__)

MIN_REPORTED_SHARE = 0.05  # of the weights that are held once; less is not worth a note


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint to load.

    Attributes:
        path: a folder or a hub id.
        side: its name in messages ("base", "aligned 2", …).
        revision: a hub branch, tag or commit.
        adapter_base: if the checkpoint is an adapter, the position (in the list to load) of the checkpoint that it is
            merged into; None where an adapter is an error.
    """

    path: str | Path
    side: str
    revision: str | None = None
    adapter_base: int | None = None


@dataclass(frozen=True)
class LoadedModels:
    """The result of loading a list of checkpoints, in their order."""

    models: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    checkpoints: tuple[Checkpoint, ...]
    notes: list[Diagnostic]


@dataclass(frozen=True)
class MemoryRequirement:
    """What must fit into memory beside the weights: `slots` completions at a time of `length` tokens (with prompt)."""

    slots: int = 1
    length: int | None = None
    check: bool = True

    def __post_init__(self) -> None:
        for name, value in (("slots", self.slots), ("length", self.length)):
            if value is not None and value < 1:
                raise PairError(f"{name} is {value}; expected at least 1")


def load_group(
    refs: Sequence[CheckpointRef], load_config: LoadConfig, memory: MemoryRequirement
) -> LoadedModels:
    """Load the checkpoints of one contrast.

    Raises:
        PairError: a checkpoint is missing, damaged, incomplete, not in safetensors, needs its own code, or is no causal
            language model; an adapter stands where none may; or (unless memory.check is off) a device has less free
            memory than the models need.
    """
    configs = load_config.per_model([ref.side for ref in refs])
    checkpoints = [open_checkpoint(ref.path, ref.side, ref.revision) for ref in refs]
    if load_config.long_context:
        checkpoints = _with_long_context(checkpoints)
    adapter_bases = [
        _adapter_base(ref, checkpoint, load_config) for ref, checkpoint in zip(refs, checkpoints, strict=True)
    ]
    configs = _placed(configs, checkpoints, adapter_bases, memory)
    read = [read_tokenizer(checkpoint) for checkpoint in checkpoints]
    tokenizers, notes = [tokenizer for tokenizer, _ in read], [note for _, found in read for note in found]
    models = []
    for i, (checkpoint, base) in enumerate(zip(checkpoints, adapter_bases, strict=True)):
        if base is None:
            model, found = load_model(checkpoint, configs[i])
        else:  # an adapter without tokenizer files was trained with its base's tokenizer
            tokenizers[i] = tokenizers[i] or tokenizers[base]
            model, found = load_merged_adapter(checkpoint, checkpoints[base], configs[i])
        models.append(model)
        notes += found
    notes += _hold_identical_once(models) + _quantization_notes(load_config) + one_sided_note(checkpoints)
    return LoadedModels(tuple(models), tuple(tokenizers), tuple(checkpoints), notes)


def _placed(
    configs: list[LoadConfig],
    checkpoints: Sequence[Checkpoint],
    adapter_bases: Sequence[int | None],
    memory: MemoryRequirement,
) -> list[LoadConfig]:
    """The configurations, each model on a GPU of its own where that was left open, there are several, and all fit.

    Raises:
        PairError: a device has less free memory than the models on it need.
    """

    def check(chosen: list[LoadConfig]) -> None:
        if memory.check:
            length = memory.length or _default_length(checkpoints)
            check_fits(checkpoints, adapter_bases, chosen, memory.slots, length)

    if any(config.device.type == "cuda" for config in configs):
        release_idle()  # buffers of samplers that decode nothing now
    spread = on_own_gpus(configs, adapter_bases)
    if spread is not None:
        try:
            check(spread)
            return spread
        except PairError as error:  # such as a GPU that others use: all models on one, as without a second
            _log.info("the models do not get a GPU each: %s", error)
    check(configs)
    return configs


def _with_long_context(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints, those with rotary angles of their own for long texts marked to use them always."""
    has_two = [
        not checkpoint.is_adapter and use_long_rope(read_causal_config(checkpoint)[0])
        for checkpoint in checkpoints
    ]
    if not any(has_two):
        raise PairError(
            "long_context was asked for, and no model has rotary angles of its own for long texts (rope_type "
            "'longrope'); leave it out"
        )
    return [
        replace(checkpoint, long_context=two) for checkpoint, two in zip(checkpoints, has_two, strict=True)
    ]


def _adapter_base(ref: CheckpointRef, checkpoint: Checkpoint, load_config: LoadConfig) -> int | None:
    """The position of the checkpoint that an adapter is merged into; None for full weights."""
    if not checkpoint.is_adapter:
        return None
    if ref.adapter_base is None:
        raise PairError(
            f"the {ref.side} checkpoint {str(ref.path)!r} is an adapter; expected full weights. If the aligned release "
            "is the adapter, swap the two"
        )
    if load_config.quantization is not None:
        raise PairError(
            f"the adapter {checkpoint.source!r} cannot be merged into weights of {load_config.quantization}: the sum "
            "would be rounded a second time. Load without quantization, or merge it into the full base and give the "
            "merged checkpoint"
        )
    return ref.adapter_base


def _default_length(checkpoints: Sequence[Checkpoint]) -> int:
    """DEFAULT_LENGTH, or the smallest context window where that is less."""
    windows = [checkpoint.config.get("max_position_embeddings") for checkpoint in checkpoints]
    return min([DEFAULT_LENGTH, *(window for window in windows if isinstance(window, int) and window > 0)])


def _hold_identical_once(models: Sequence[Any]) -> list[Diagnostic]:
    freed = share_identical(models)
    if freed < MIN_REPORTED_SHARE * sum(map(weights_bytes, models)):
        return []
    return [
        Diagnostic(
            "info",
            "memory",
            f"{format_bytes(freed)} of the weights are identical to the bit in several models, and held once",
            "Do not change a weight in place: it would change in all of them",
        )
    ]


def _quantization_notes(load_config: LoadConfig) -> list[Diagnostic]:
    if load_config.quantization is None:
        return []
    bits = load_config.quantization.removesuffix("bit")
    return [
        Diagnostic(
            "warning",
            "quantization",
            f"the weights are rounded to {bits} bits as they are loaded",
            "The contrast multiplies the rounding error by 1 + 2α; confirm a finding with the weights as released",
        )
    ]
