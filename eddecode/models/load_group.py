"""Loading checkpoints that are going to be decoded together: opened, weighed, read, and what they share held once.

The order is the point. All files are opened and checked before any is read; memory is reckoned before it is taken; and
tensors that are equal to the bit are found once all models are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eddecode.errors import PairError
from eddecode.models.checkpoint import Checkpoint, open_checkpoint
from eddecode.models.load_config import Placement
from eddecode.models.loader import load_tokenizer, place_merged, place_model
from eddecode.models.memory_estimate import LENGTH, check_fits
from eddecode.models.notes import Note
from eddecode.models.sizes import size, weights_bytes
from eddecode.models.weight_sharing import share_identical

NOTEWORTHY = 0.05  # share of the weights from which on it is worth saying that they are held once


@dataclass(frozen=True)
class Source:
    """A checkpoint to load: a folder or hub id, how messages call it, and where to fetch it.

    over: the position of the checkpoint that it is merged into if it is an adapter; None where it must not be one.
    """

    path: str | Path
    side: str
    revision: str | None = None
    over: int | None = None


@dataclass(frozen=True)
class Loaded:
    """What came of a list of sources, in their order."""

    models: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    checkpoints: tuple[Checkpoint, ...]
    notes: list[Note]


@dataclass(frozen=True)
class Fit:
    """What must fit into memory beside the weights: completions at a time, and tokens of each with its prompt."""

    slots: int = 1
    length: int | None = None
    check: bool = True

    def __post_init__(self) -> None:
        for name, value in (("slots", self.slots), ("length", self.length)):
            if value is not None and value < 1:
                raise PairError(f"{name} is {value}; expected at least 1")


def load_group(sources: Sequence[Source], placement: Placement, fit: Fit) -> Loaded:
    """Load checkpoints for one contrast.

    Errors: PairError for a checkpoint that is missing, damaged, incomplete, not in safetensors, in need of its own code
    or no causal language model; for an adapter in the wrong place; and, unless fit.check is off, for a device with
    less free memory than what would go there.
    """
    placements = placement.split([source.side for source in sources])
    checkpoints = [open_checkpoint(source.path, source.side, source.revision) for source in sources]
    for source, checkpoint in zip(sources, checkpoints, strict=True):
        if checkpoint.is_adapter and source.over is None:
            raise PairError(
                f"the {source.side} checkpoint {str(source.path)!r} is an adapter; expected full weights. If it is the "
                "aligned release that is the adapter, swap the two"
            )
        if checkpoint.is_adapter and placement.quantization is not None:
            raise PairError(
                f"the adapter {checkpoint.source!r} cannot be merged into weights of {placement.quantization}: the sum "
                "would be rounded once more. Load without quantization, or merge it into the full base and give the "
                "merged checkpoint"
            )
    overs = [
        source.over if checkpoint.is_adapter else None
        for source, checkpoint in zip(sources, checkpoints, strict=True)
    ]
    if fit.check:
        check_fits(checkpoints, overs, placements, fit.slots, fit.length or _length(checkpoints))
    tokenizers = [load_tokenizer(checkpoint) for checkpoint in checkpoints]
    models, notes = [], []
    for i, (checkpoint, over) in enumerate(zip(checkpoints, overs, strict=True)):
        if over is None:
            model, more = place_model(checkpoint, placements[i])
        else:  # an adapter that brings no tokenizer was trained with its base's
            tokenizers[i] = tokenizers[i] or tokenizers[over]
            model, more = place_merged(checkpoint, checkpoints[over], placements[i])
        models.append(model)
        notes += more
    return Loaded(
        tuple(models), tuple(tokenizers), tuple(checkpoints), notes + _shared(models) + _rounded(placement)
    )


def _length(checkpoints: Sequence[Checkpoint]) -> int:
    """The usual length, or the models' own if they read less."""
    windows = [checkpoint.config.get("max_position_embeddings") for checkpoint in checkpoints]
    return min([LENGTH, *(window for window in windows if isinstance(window, int) and window > 0)])


def _shared(models: Sequence[Any]) -> list[Note]:
    freed = share_identical(models)
    if freed < NOTEWORTHY * sum(map(weights_bytes, models)):
        return []
    return [
        Note(
            "info",
            "memory",
            f"{size(freed)} of the weights are identical to the bit in several models, and held once",
            "Do not change a weight in place: it would change in all of them",
        )
    ]


def _rounded(placement: Placement) -> list[Note]:
    if placement.quantization is None:
        return []
    return [
        Note(
            "warning",
            "quantization",
            f"the weights are rounded to {placement.quantization.removesuffix('bit')} bits as they are loaded",
            "α multiplies what that changes, (1 + 2α)-fold; confirm a finding with the weights as released",
        )
    ]
