"""What a pair needs in memory, from configurations and safetensors headers alone: no weight is read.

A pair that does not fit should say so before minutes are spent on reading it, and should say what would fit. The
weights are exact, from the tensors that the files list. The keys and values of a token are exact for the families that
transformers describes by layers, heads and head sizes. Activations are rough, and rather too high than too low: what
the engine's passes would hold if nothing were freed early (docs/large-pairs.md compares them with measurements).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eddecode.errors import PairError
from eddecode.models.checkpoint import Checkpoint, open_checkpoint
from eddecode.models.load_config import Placement, Quantization, parse_dtype
from eddecode.models.loader import load_config
from eddecode.models.safetensors_header import read_header
from eddecode.models.sizes import PREFILL_CHUNK, PREFILL_TOKENS, cache_bytes_per_token, size
from eddecode.utils.memory import free_bytes

LENGTH = 2048  # tokens of prompt and completion that must fit, unless a caller or the model says less

_ITEMSIZE = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
}  # every other takes one byte
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Bytes of a quantised weight: int8 and a scale per row; four bits and a float32 scale per block of 64.
_QUANTISED = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
_NOT_QUANTISED = ("embed", "lm_head", "wte", "wpe", "output.weight")
_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


# What one model needs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelCost:
    """One model: its name, bytes of weights, of keys and values per token (None if unknown), and of activations."""

    name: str
    parameters: int
    weights: int
    cache_per_token: int | None
    activations: int
    logits: int


@dataclass(frozen=True)
class Estimate:
    """What models need together, in bytes, to decode `slots` completions of `length` tokens (prompt included)."""

    models: tuple[ModelCost, ...]
    slots: int
    length: int

    @property
    def weights(self) -> int:
        """All weights, each model's in full: what they share is found only once they are there."""
        return sum(model.weights for model in self.models)

    @property
    def cache(self) -> int:
        """Keys and values of all slots, in the steps of 64 positions in which the cache grows."""
        positions = self.slots * 64 * math.ceil(self.length / 64)
        return positions * sum(model.cache_per_token or 0 for model in self.models)

    @property
    def activations(self) -> int:
        """Of the hungriest model, since one runs at a time, and the logits of all."""
        return max(model.activations for model in self.models) + sum(model.logits for model in self.models)

    @property
    def total(self) -> int:
        """Everything."""
        return self.weights + self.cache + self.activations

    def describe(self) -> dict[str, Any]:
        """As data that json.dumps takes; all sizes in bytes."""
        return {
            "slots": self.slots,
            "length": self.length,
            "weights": self.weights,
            "cache": self.cache,
            "activations": self.activations,
            "total": self.total,
            "models": [vars(model).copy() for model in self.models],
        }

    def __str__(self) -> str:
        return (
            f"{size(self.weights)} of weights, {size(self.cache)} of keys and values for {self.slots} × {self.length} "
            f"tokens, about {size(self.activations)} of activations"
        )


def estimate(
    base: str | Path,
    *aligned: str | Path,
    dtype: str | torch.dtype = "auto",
    slots: int = 1,
    length: int = LENGTH,
    quantization: str | None = None,
) -> Estimate:
    """What a pair (or any number of checkpoints) needs, before anything of it is loaded.

    base, aligned: local folders or hub ids (whose files are then fetched); an adapter counts as a merged copy of the
    first. slots, length: completions that decode together, and tokens of prompt and completion.
    Errors: PairError as in `ModelPair.load`.
    """
    checkpoints = [
        open_checkpoint(source, "base" if i == 0 else "aligned") for i, source in enumerate((base, *aligned))
    ]
    form = Placement(parse_dtype(dtype), quantization=_bits(quantization))
    overs = [0 if checkpoint.is_adapter else None for checkpoint in checkpoints]
    return estimate_checkpoints(checkpoints, overs, [form] * len(checkpoints), slots, length)


def _bits(quantization: str | None) -> Quantization | None:
    if quantization not in (None, "8bit", "4bit"):
        raise PairError(f"quantization is {quantization!r}; expected '8bit', '4bit', or None")
    return quantization  # type: ignore[return-value]


def estimate_checkpoints(
    checkpoints: Sequence[Checkpoint],
    overs: Sequence[int | None],
    placements: Sequence[Placement],
    slots: int,
    length: int,
) -> Estimate:
    """The same for checkpoints that are open; overs: for an adapter, which of them it is merged into."""
    costs = []
    for checkpoint, over, placement in zip(checkpoints, overs, placements, strict=True):
        costs.append(_cost(checkpoint, None if over is None else checkpoints[over], placement, slots, length))
    return Estimate(tuple(costs), slots, length)


def _cost(
    checkpoint: Checkpoint, over: Checkpoint | None, placement: Placement, slots: int, length: int
) -> ModelCost:
    whole = over if checkpoint.is_adapter and over is not None else checkpoint
    config, _ = load_config(whole)
    dtype = _dtype(whole, config, placement.dtype)
    files = [*whole.files, *(checkpoint.files if checkpoint.is_adapter else ())]
    entries = {name: entry for file in files for name, entry in read_header(file)[0].items()}
    packed = "quantization_config" in whole.config  # quantised as it is: nothing is converted
    bits = None if packed else placement.quantization
    return ModelCost(
        name=checkpoint.side,
        parameters=sum(math.prod(entry["shape"]) for entry in entries.values()),
        weights=sum(_bytes(name, entry, None if packed else dtype, bits) for name, entry in entries.items()),
        cache_per_token=cache_bytes_per_token(config, dtype),
        activations=activation_bytes(config, dtype, slots, length),
        logits=4 * 3 * slots * int(config.get_text_config().vocab_size),  # as they come, contrasted, filtered
    )


def _dtype(checkpoint: Checkpoint, config: Any, wanted: str | torch.dtype) -> torch.dtype:
    """The dtype that the weights will have; "auto" is the configuration's, else that of the files."""
    if isinstance(wanted, torch.dtype):
        return wanted
    named = getattr(config, "dtype", None)
    if isinstance(named, torch.dtype):
        return named
    for file in checkpoint.files:
        for entry in read_header(file)[0].values():
            if entry["dtype"] in _FLOATS:
                return _FLOATS[entry["dtype"]]
    return torch.float32


def _bytes(name: str, entry: Mapping[str, Any], dtype: torch.dtype | None, bits: Quantization | None) -> int:
    """Bytes of one tensor once it is loaded; dtype None leaves it as it is in the file."""
    count = math.prod(entry["shape"])
    if dtype is None or entry["dtype"] not in _FLOATS:
        return int(count * _ITEMSIZE.get(entry["dtype"], 1))
    if bits and len(entry["shape"]) == 2 and not any(part in name for part in _NOT_QUANTISED):
        scales = 4 * entry["shape"][0] if bits == "8bit" else 0
        return int(math.ceil(count * _QUANTISED[bits]) + scales)
    return int(count * dtype.itemsize)


def activation_bytes(config: Any, dtype: torch.dtype, slots: int, length: int) -> int:
    """Roughly what one model's passes hold at once: hidden states, attention scores, and what a prefill has read."""
    config = config.get_text_config()
    hidden = int(getattr(config, "hidden_size", None) or 0)
    inner = getattr(config, "intermediate_size", None)
    inner = int(inner) if isinstance(inner, int) else 4 * hidden
    heads = getattr(config, "num_attention_heads", None)
    heads = int(heads) if isinstance(heads, int) else 1
    rows = max(1, min(slots, PREFILL_TOKENS // length))  # texts that are read in one prefill
    chunk = min(PREFILL_CHUNK, length)
    tokens = max(slots, rows * chunk)
    states = tokens * (6 * hidden + 3 * inner) * dtype.itemsize
    scores = 4 * heads * length * tokens
    # In the pass, and of every prompt as it is kept until its rows are in their slots.
    read = (rows + slots) * length * (cache_bytes_per_token(config, dtype) or 0)
    return states + scores + read


# What there is ---------------------------------------------------------------------------------------------------


def check_fits(
    checkpoints: Sequence[Checkpoint],
    overs: Sequence[int | None],
    placements: Sequence[Placement],
    slots: int,
    length: int,
) -> None:
    """PairError if a device has less free memory than what is going to be put there; says what would fit."""
    pools: dict[tuple[torch.device, ...], list[int]] = {}
    for i, placement in enumerate(placements):
        devices = _devices(placement)
        if devices is not None:
            pools.setdefault(devices, []).append(i)
    for devices, members in pools.items():
        free = sum(free_bytes(device) for device in devices)

        def needed(slots: int, length: int, members: Sequence[int] = members, **form: Any) -> Estimate:
            placed = [replace(placements[i], **form) for i in range(len(placements))]
            whole = estimate_checkpoints(checkpoints, overs, placed, slots, length)
            return replace(whole, models=tuple(whole.models[i] for i in members))

        now = needed(slots, length)
        if now.total > free:
            names = " and ".join(model.name for model in now.models)
            where = " and ".join(map(str, devices))
            raise PairError(
                f"{names} would need {size(now.total)} on {where} ({now}), and {size(free)} are free there. "
                f"{_ways_out(now, free, needed, devices, placements[members[0]])}"
            )


def _devices(placement: Placement) -> tuple[torch.device, ...] | None:
    """Where a model may go; None if part of it may stay on the disk, so that nothing is too large."""
    device_map = placement.device_map
    if device_map is None:
        return (placement.device,)
    if isinstance(device_map, str) and device_map in _SPREAD:
        return None if placement.offload_folder is not None else all_devices()
    named = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    if "disk" in named:
        return None
    places = {torch.device("cuda", name) if isinstance(name, int) else torch.device(name) for name in named}
    return tuple(sorted(places, key=str))


def all_devices() -> tuple[torch.device, ...]:
    """Every CUDA device, and the CPU."""
    return (*(torch.device("cuda", i) for i in range(torch.cuda.device_count())), torch.device("cpu"))


def _ways_out(
    now: Estimate, free: int, needed: Any, devices: tuple[torch.device, ...], placement: Placement
) -> str:
    """What would fit, each with what it would need."""
    ways = []
    if now.slots > 1 and needed(1, now.length).total <= free:
        most = bisect.bisect_right(range(1, now.slots), free, key=lambda s: needed(s, now.length).total)
        ways.append(
            f"at most {most} completions at a time (slots={most}, Sampler(max_slots={most})): a sweep decodes every α "
            "and sample of a prompt together, so fewer of them"
        )
    elif (shorter := _longest(now, free, needed)) is not None:
        ways.append(f"texts of at most {shorter} tokens (length={shorter})")
    forms: list[tuple[str, dict[str, Any]]] = [("dtype='bfloat16'", {"dtype": torch.bfloat16})]
    if any(device.type == "cuda" for device in devices):
        forms += [(f"quantization='{bits}'", {"quantization": bits}) for bits in ("8bit", "4bit")]
    for said, form in forms:
        other = needed(now.slots, now.length, **form)
        if other.total <= free and other.weights < now.weights:
            ways.append(f"{said} ({size(other.total)})")
    if placement.device_map is None:
        spread = sum(free_bytes(device) for device in all_devices())
        if len(all_devices()) > 1 and now.total <= spread:
            ways.append(f"device_map='auto' ({size(spread)} on {len(all_devices())} devices)")
        ways.append(
            "device_map='auto' with offload_folder= (what does not fit is read from the disk at every token: slow)"
        )
    return f"What would fit: {'; '.join(ways) or 'a smaller pair'}. check_memory=False loads it all the same"


def _longest(now: Estimate, free: int, needed: Any) -> int | None:
    """The longest text, in steps that halve, that would fit in one slot; None below 64 tokens."""
    length = now.length // 2
    while length >= 64:
        if needed(1, length).total <= free:
            return length
        length //= 2
    return None
