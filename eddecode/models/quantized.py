"""Checkpoints that were saved quantized: whether the configuration fits the files, and what is held in memory.

On some machines transformers widens such weights as it loads them (float8 without a GPU that multiplies it, MXFP4
without its kernels): then they take two to four times the memory of the files, and are still rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from eddecode.errors import PairError
from eddecode.models.checkpoint import Checkpoint
from eddecode.models.diagnostics import Diagnostic
from eddecode.models.load_config import has_package
from eddecode.models.safetensors_header import BITS

_PLAIN = ("F64", "F32", "F16", "BF16")
_ALWAYS_STORED_QUANTIZED = ("fp8", "mxfp4", "gptq", "awq")
_SCALE_NAMES = ("scale", "absmax", "qzeros", "SCB", "weight_shape")
_FP8_FORMATS = {"e4m3": "F8_E4M3", "e5m2": "F8_E5M2"}


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """The method that a config.json names, such as "fp8"; None for plain weights."""
    settings = _settings(config)
    if settings is None:
        return None
    if settings.get("quant_method") is None and (
        settings.get("load_in_4bit") or settings.get("load_in_8bit")
    ):
        return "bitsandbytes"
    return str(settings.get("quant_method"))


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = config.get("quantization_config")
    return found if isinstance(found, Mapping) else None


def check_quantization(checkpoint: Checkpoint) -> None:
    """PairError for a quantization that transformers does not know, or that the files do not have."""
    raw = checkpoint.config.get("quantization_config")
    if raw is None:
        return
    if not isinstance(raw, Mapping):
        raise PairError(
            f"{checkpoint.where} has a quantization_config of type {type(raw).__name__}; expected an object"
        )
    method = quantization_method(checkpoint.config)
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING and method != "bitsandbytes":
        raise PairError(
            f"{checkpoint.where} has the quant_method {method!r}, which the installed transformers does not know; "
            "check config.json (remove quantization_config if the weights are plain), or upgrade transformers"
        )
    dtypes = {entry["dtype"] for _, entry in checkpoint.tensors().values()}
    if method in _ALWAYS_STORED_QUANTIZED and dtypes <= set(_PLAIN):
        raise PairError(
            f"{checkpoint.where} has the quant_method {method!r} in config.json, and its files hold only "
            f"{', '.join(sorted(dtypes))}; remove quantization_config if the weights are plain, or fetch the files "
            "again"
        )
    wanted = _FP8_FORMATS.get(str(raw.get("fmt", "e4m3"))) if method == "fp8" else None
    if wanted is not None and wanted not in dtypes:
        raise PairError(
            f"{checkpoint.where} says {raw.get('fmt', 'e4m3')} in quantization_config, and its files hold "
            f"{', '.join(sorted(dtypes))}; the files were relabelled. Fetch the checkpoint again"
        )


def is_widened(config: Mapping[str, Any]) -> bool:
    """Whether transformers widens the quantized weights as it loads them on this machine."""
    method = quantization_method(config)
    if method == "fp8":
        has_fp8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
        return bool((_settings(config) or {}).get("dequantize")) or not has_fp8
    if method == "mxfp4":
        return not (has_package("triton") and has_package("kernels"))
    return False


def widened_bytes(name: str, entry: Mapping[str, Any], dtype: torch.dtype) -> int:
    """Bytes of a stored tensor of a checkpoint that is widened to `dtype` as it is loaded."""
    count = math.prod(entry["shape"])
    if any(part in name.rpartition(".")[2] for part in _SCALE_NAMES):
        return 0  # multiplied into the weights
    if entry["dtype"].startswith("F8"):
        return int(count * dtype.itemsize)
    if entry["dtype"] == "U8":
        return int(2 * count * dtype.itemsize)  # two four-bit numbers in a byte
    return int(count * (dtype.itemsize if entry["dtype"] in _PLAIN else BITS[entry["dtype"]] / 8))


def quantization_notes(checkpoint: Checkpoint, model: Any) -> list[Diagnostic]:
    """What a user should know of weights that were quantized before the release."""
    method = quantization_method(checkpoint.config)
    dtypes = {entry["dtype"] for _, entry in checkpoint.tensors().values()}
    if method is None:
        if not any(dtype.startswith("F8") for dtype in dtypes):
            return []
        method = "float8, without scales"
    held = str(model.dtype).removeprefix("torch.")
    widened = not getattr(model, "is_quantized", False) or is_widened(checkpoint.config)
    form = (
        f"in memory they are held as {held}, and take the memory of that"
        if widened
        else "and held so in memory"
    )
    return [
        Diagnostic(
            "warning",
            checkpoint.side,
            f"the weights are quantized ({method}) in the files; {form}",
            "They are rounded whatever they are held as. The contrast multiplies the error of either side; where there "
            "is a release in bfloat16, confirm a finding with it",
        )
    ]


def one_sided_note(checkpoints: list[Checkpoint]) -> list[Diagnostic]:
    """A warning where some of the models to contrast are quantized and others are not."""
    methods = [
        quantization_method(checkpoint.config) for checkpoint in checkpoints if not checkpoint.is_adapter
    ]
    if len(set(methods)) < 2:
        return []
    listed = ", ".join(
        f"{checkpoint.side}: {quantization_method(checkpoint.config) or 'not quantized'}"
        for checkpoint in checkpoints
        if not checkpoint.is_adapter
    )
    return [
        Diagnostic(
            "warning",
            "quantization",
            f"the models are not rounded alike ({listed})",
            "A part of what the contrast shows is the rounding of one side; use releases of one precision",
        )
    ]
