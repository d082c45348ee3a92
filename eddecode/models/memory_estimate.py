"""How much memory a pair needs, from configurations and safetensors headers alone: no weight is read.

A pair that does not fit is refused before minutes are spent on reading it, with a list of what would fit. The size of
the weights is exact, from the tensors that the files list. The keys and values of a token are exact for the model
families that transformers describes by layers, heads and head sizes. Activations are a rough upper estimate: what the
engine's passes would hold if nothing were freed early (docs/large-pairs.md compares it with measurements).
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
from eddecode.models import tensor_parallel
from eddecode.models.checkpoint import Checkpoint, open_checkpoint
from eddecode.models.load_config import LoadConfig, Quantization, parse_dtype, parse_quantization
from eddecode.models.loader import read_causal_config
from eddecode.models.quantized import is_widened, quantization_method, widened_bytes
from eddecode.models.safetensors_header import BITS, read_header
from eddecode.models.sizes import (
    PREFILL_CHUNK,
    PREFILL_TOKENS,
    cache_bytes_per_token,
    format_bytes,
    layer_configs,
)
from eddecode.utils.memory import free_bytes

DEFAULT_LENGTH = 2048  # tokens of prompt and completion that must fit, unless a caller or the model says less

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Bytes per quantized weight: int8 (and a scale per row); four bits and a float32 scale per block of 64.
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
_NEVER_QUANTIZED = ("embed", "lm_head", "wte", "wpe", "output.weight")
_AUTOMATIC_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


# Memory that is needed --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelCost:
    """What one model needs, in bytes (`parameters` is a count); cache_per_token: keys and values, None if unknown."""

    name: str
    parameters: int
    weights: int
    cache_per_token: int | None
    activations: int
    logits: int


@dataclass(frozen=True)
class MemoryEstimate:
    """What models need together, in bytes, to decode `slots` completions of `length` tokens (prompt included)."""

    models: tuple[ModelCost, ...]
    slots: int
    length: int

    @property
    def weights(self) -> int:
        """All weights, each model's in full: identical tensors are only found after loading."""
        return sum(model.weights for model in self.models)

    @property
    def cache(self) -> int:
        """Keys and values of all slots; the cache grows in steps of 64 positions."""
        positions = self.slots * 64 * math.ceil(self.length / 64)
        return positions * sum(model.cache_per_token or 0 for model in self.models)

    @property
    def activations(self) -> int:
        """Those of the model with the most, since one runs at a time, and the logits of all."""
        return max(model.activations for model in self.models) + sum(model.logits for model in self.models)

    @property
    def total(self) -> int:
        """Weights, keys and values, and activations."""
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
            f"{format_bytes(self.weights)} of weights, {format_bytes(self.cache)} of keys and values for "
            f"{self.slots} × {self.length} tokens, about {format_bytes(self.activations)} of activations"
        )


def estimate(
    base: str | Path,
    *aligned: str | Path,
    dtype: str | torch.dtype = "auto",
    slots: int = 1,
    length: int = DEFAULT_LENGTH,
    quantization: str | None = None,
) -> MemoryEstimate:
    """How much memory a pair (or any number of checkpoints) needs, before anything is loaded.

    Args:
        base, aligned: local folders, or hub ids (whose files are then downloaded); an adapter counts as a merged copy
            of `base`.
        dtype, quantization: as in `ModelPair.load`.
        slots: completions that are decoded together.
        length: tokens of prompt and completion of each.

    Raises:
        PairError: as in `ModelPair.load`.
    """
    checkpoints = [
        open_checkpoint(source, "base" if i == 0 else "aligned") for i, source in enumerate((base, *aligned))
    ]
    load_config = LoadConfig(parse_dtype(dtype), quantization=parse_quantization(quantization))
    adapter_bases = [0 if checkpoint.is_adapter else None for checkpoint in checkpoints]
    return estimate_checkpoints(checkpoints, adapter_bases, [load_config] * len(checkpoints), slots, length)


def estimate_checkpoints(
    checkpoints: Sequence[Checkpoint],
    adapter_bases: Sequence[int | None],
    load_configs: Sequence[LoadConfig],
    slots: int,
    length: int,
) -> MemoryEstimate:
    """As `estimate`, of open checkpoints; adapter_bases: per adapter, the position of its base, else None."""
    costs = []
    for checkpoint, position, load_config in zip(checkpoints, adapter_bases, load_configs, strict=True):
        base = None if position is None else checkpoints[position]
        costs.append(_model_cost(checkpoint, base, load_config, slots, length))
    return MemoryEstimate(tuple(costs), slots, length)


def _model_cost(
    checkpoint: Checkpoint, adapter_base: Checkpoint | None, load_config: LoadConfig, slots: int, length: int
) -> ModelCost:
    full = adapter_base or checkpoint
    config, _ = read_causal_config(full)
    dtype = _dtype(full, config, load_config.dtype)
    files = [*full.files, *(checkpoint.files if adapter_base else ())]
    entries = {name: entry for file in files for name, entry in read_header(file)[0].items()}
    is_quantized = quantization_method(full.config) is not None
    widened = dtype if is_quantized and is_widened(full.config) else None
    target, bits = (None, None) if is_quantized else (dtype, load_config.quantization)
    return ModelCost(
        name=checkpoint.side,
        parameters=sum(math.prod(entry["shape"]) for entry in entries.values()),
        weights=sum(
            widened_bytes(name, entry, widened)
            if widened is not None
            else _tensor_bytes(name, entry, target, bits)
            for name, entry in entries.items()
        ),
        cache_per_token=cache_bytes_per_token(config, dtype),
        activations=activation_bytes(config, dtype, slots, length),
        logits=4 * 3 * slots * int(config.get_text_config().vocab_size),  # raw, contrasted, filtered; float32
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


def _tensor_bytes(
    name: str, entry: Mapping[str, Any], dtype: torch.dtype | None, bits: Quantization | None
) -> int:
    """Bytes of one tensor after loading; dtype None: as it is in the file."""
    count = math.prod(entry["shape"])
    if dtype is None or entry["dtype"] not in _FLOATS:
        return int(-(-count * BITS[entry["dtype"]] // 8))
    if bits and len(entry["shape"]) == 2 and not any(part in name for part in _NEVER_QUANTIZED):
        scales = 4 * entry["shape"][0] if bits == "8bit" else 0
        return int(math.ceil(count * _QUANTIZED_BYTES[bits]) + scales)
    return int(count * dtype.itemsize)


def activation_bytes(config: Any, dtype: torch.dtype, slots: int, length: int) -> int:
    """Bytes that one model's passes hold at once, roughly: hidden states, attention scores, and prefilled prompts."""
    config = config.get_text_config()
    hidden = int(getattr(config, "hidden_size", None) or 0)
    layers = layer_configs(config)  # which may differ: the largest counts
    inner = max((_int(layer, "intermediate_size") or 4 * hidden for layer in layers), default=4 * hidden)
    heads = max((_int(layer, "num_attention_heads") or 1 for layer in layers), default=1)
    rows = max(1, min(slots, PREFILL_TOKENS // length))  # prompts in one prefill
    chunk = min(PREFILL_CHUNK, length)
    tokens = max(slots, rows * chunk)
    states = tokens * (6 * hidden + 3 * inner) * dtype.itemsize
    scores = 4 * heads * length * tokens
    # Keys and values of the prompts in the pass, and of those that wait to be copied into their slots.
    prefilled = (rows + slots) * length * (cache_bytes_per_token(config, dtype) or 0)
    return states + scores + prefilled


def _int(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None


# Memory that is free ---------------------------------------------------------------------------------------------


def check_fits(
    checkpoints: Sequence[Checkpoint],
    adapter_bases: Sequence[int | None],
    load_configs: Sequence[LoadConfig],
    slots: int,
    length: int,
) -> None:
    """Refuse models that do not fit on their devices, with a list of what would fit.

    Raises:
        PairError: a device has less free memory than the models on it need.
    """
    members_of: dict[tuple[torch.device, ...], list[int]] = {}
    for i, load_config in enumerate(load_configs):
        devices = _devices(load_config)
        if devices is not None:
            members_of.setdefault(devices, []).append(i)
    for devices, members in members_of.items():
        free = sum(free_bytes(device) for device in devices)

        def needed(
            slots: int,
            length: int,
            members: Sequence[int] = members,
            devices: tuple[torch.device, ...] = devices,
            **changes: Any,
        ) -> MemoryEstimate:
            changed = [replace(load_config, **changes) for load_config in load_configs]
            whole = estimate_checkpoints(checkpoints, adapter_bases, changed, slots, length)
            return replace(whole, models=tuple(_part(whole.models[i], devices) for i in members))

        now = needed(slots, length)
        if now.total > free:
            names = " and ".join(model.name for model in now.models)
            where = " and ".join(map(str, devices))
            raise PairError(
                f"{names} would need {format_bytes(now.total)} on {where} ({now}), and {format_bytes(free)} are free "
                f"there. {_suggestions(now, free, needed, devices, load_configs[members[0]])}"
            )


def _part(model: ModelCost, devices: tuple[torch.device, ...]) -> ModelCost:
    """What one of several processes holds of a model that is split over them, where each has a device of its own."""
    parts = tensor_parallel.size() if devices[0].type == "cuda" else 1
    cache = model.cache_per_token
    return replace(
        model, weights=model.weights // parts, cache_per_token=None if cache is None else cache // parts
    )


def _devices(load_config: LoadConfig) -> tuple[torch.device, ...] | None:
    """The devices that a model may use; None if a part may stay on the disk, since then any size fits."""
    device_map = load_config.device_map
    if device_map is None:
        return (load_config.device,)
    if isinstance(device_map, str) and device_map in _AUTOMATIC_MAPS:
        return None if load_config.offload_folder is not None else all_devices()
    named = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    if "disk" in named:
        return None
    places = {torch.device("cuda", name) if isinstance(name, int) else torch.device(name) for name in named}
    return tuple(sorted(places, key=str))


def all_devices() -> tuple[torch.device, ...]:
    """Every CUDA device, and the CPU."""
    return (*(torch.device("cuda", i) for i in range(torch.cuda.device_count())), torch.device("cpu"))


def _suggestions(
    now: MemoryEstimate, free: int, needed: Any, devices: tuple[torch.device, ...], load_config: LoadConfig
) -> str:
    """A sentence that lists what would fit; needed(slots, length, **changes of LoadConfig) estimates an alternative."""
    ways = []
    if now.slots > 1 and needed(1, now.length).total <= free:
        most = bisect.bisect_right(range(1, now.slots), free, key=lambda s: needed(s, now.length).total)
        ways.append(
            f"at most {most} completions at a time (slots={most}, Sampler(max_slots={most})): a sweep decodes every α "
            "and sample of a prompt together, so fewer of them"
        )
    elif (shorter := _longest_that_fits(now, free, needed)) is not None:
        ways.append(f"texts of at most {shorter} tokens (length={shorter})")
    changes: list[tuple[str, dict[str, Any]]] = [("dtype='bfloat16'", {"dtype": torch.bfloat16})]
    if any(device.type == "cuda" for device in devices):
        changes += [(f"quantization='{bits}'", {"quantization": bits}) for bits in ("8bit", "4bit")]
    for option, change in changes:
        other = needed(now.slots, now.length, **change)
        if other.total <= free and other.weights < now.weights:
            ways.append(f"{option} ({format_bytes(other.total)})")
    if load_config.device_map is None:
        everywhere = sum(free_bytes(device) for device in all_devices())
        if len(all_devices()) > 1 and now.total <= everywhere:
            ways.append(f"device_map='auto' ({format_bytes(everywhere)} on {len(all_devices())} devices)")
        ways.append(
            "device_map='auto' with offload_folder= (what does not fit is read from the disk at every token: slow)"
        )
    return f"What would fit: {'; '.join(ways) or 'a smaller pair'}. check_memory=False skips this check"


def _longest_that_fits(now: MemoryEstimate, free: int, needed: Any) -> int | None:
    """The longest text that fits in one slot, found by halving; None below 64 tokens."""
    length = now.length // 2
    while length >= 64:
        if needed(1, length).total <= free:
            return length
        length //= 2
    return None
