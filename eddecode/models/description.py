"""Loaded models described as data for json.dumps: the parts of `ModelPair.describe`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eddecode.models.checkpoint import Checkpoint
from eddecode.models.diagnostics import Diagnostic
from eddecode.models.sizes import kv_bytes_per_token, weights_bytes
from eddecode.models.weight_sharing import resident_bytes

# Fields of a configuration that say nothing of what a model computes.
_NOT_COMPARED = ("_name_or_path", "transformers_version", "use_cache", "architectures")


def describe_model(
    model: Any, tokenizer: Any, checkpoint: Checkpoint | None, eos_ids: frozenset[int], window: int | None
) -> dict[str, Any]:
    """One model as data: "base" or "aligned" of `ModelPair.describe`."""
    compared = getattr(model, "file_comparison", None)  # left by the loader
    dtypes: dict[str, int] = {}
    for parameter in model.parameters():
        dtypes[dtype_name(parameter.dtype)] = dtypes.get(dtype_name(parameter.dtype), 0) + parameter.numel()
    return {
        "source": checkpoint.source if checkpoint else str(model.config.name_or_path or "") or "in memory",
        "adapter": bool(checkpoint and checkpoint.is_adapter),
        "architecture": type(model).__name__,
        "model_type": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtypes": dtypes,
        "devices": sorted({str(parameter.device) for parameter in model.parameters()}),
        "attention": getattr(model.config, "_attn_implementation", None),
        "logit_width": logit_width(model),
        "tokenizer": _describe_tokenizer(tokenizer),
        "eos_ids": sorted(eos_ids),
        "context_window": window,
        "weights_bytes": weights_bytes(model),
        "kv_bytes_per_token": kv_bytes_per_token(model),
        "files": None if compared is None else compared.to_dict(),
    }


def describe_shared(models: Sequence[Any], vocabulary: Tensor, notes: Sequence[Diagnostic]) -> dict[str, Any]:
    """The parts of `ModelPair.describe` about all models: "vocabulary", "memory" and "notes"."""
    sampleable, (held, shared) = int(vocabulary.sum()), resident_bytes(models)
    return {
        "vocabulary": {
            "width": len(vocabulary),
            "sampleable": sampleable,
            "masked": len(vocabulary) - sampleable,
        },
        "memory": {"weights_bytes": held, "shared_bytes": shared},
        "notes": [note.to_dict() for note in notes],
    }


def config_difference(base: Any, aligned: Any) -> dict[str, list[Any]]:
    """Field of the configurations → [base's value, aligned's value], where they differ; null where one lacks it."""
    ours, theirs = (
        {key: value for key, value in model.config.to_dict().items() if key not in _NOT_COMPARED}
        for model in (base, aligned)
    )
    return {
        key: [ours.get(key), theirs.get(key)]
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }


def dtype_name(dtype: torch.dtype) -> str:
    """bfloat16 for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any] | None:
    if tokenizer is None:
        return None
    return {
        "class": type(tokenizer).__name__,
        "size": len(tokenizer),
        "chat_template": bool(getattr(tokenizer, "chat_template", None)),
        "bos": tokenizer.bos_token,
        "eos": tokenizer.eos_token,
    }


def logit_width(model: Any) -> int:
    """The number of logits: the rows of the output embedding."""
    return int(model.get_output_embeddings().weight.shape[0])
