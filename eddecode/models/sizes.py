"""Sizes: bytes of weights, bytes of keys and values per token, and how a size is written."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

# What one forward pass over prompts reads at most.
PREFILL_TOKENS = 2048  # tokens of all rows, padding included
PREFILL_CHUNK = (
    512  # tokens of one row: longer prompts take several passes, which bounds the attention scores
)


def named_tensors(model: Any) -> dict[str, Tensor]:
    """Parameters and saved buffers by name; a tied tensor under its first name only."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def all_names(model: Any) -> dict[str, Tensor]:
    """Parameters and saved buffers under every one of their names (a tied head under both)."""
    return {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}


def weights_bytes(model: Any) -> int:
    """Bytes of parameters and buffers, tied ones counted once."""
    held = {id(tensor): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
    return sum(held.values())


def has_accelerate_hooks(model: Any) -> bool:
    """Whether accelerate has placed a model's layers: its hooks move weights and inputs as they are needed."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def input_device(model: Any) -> torch.device:
    """Where token ids go in; for an offloaded embedding, the device that its weights are brought to when it runs."""
    embedding = model.get_input_embeddings()
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return torch.device(embedding.weight.device if device is None else device)


def kv_bytes_per_token(model: Any) -> int | None:
    """Bytes that one token takes in the keys and values of all layers, in the model's dtype; None if unknown."""
    return cache_bytes_per_token(model.config, model.dtype)


def cache_bytes_per_token(config: Any, dtype: torch.dtype) -> int | None:
    """Bytes that one token takes in the keys and values of all layers; None if the configuration does not say.

    2 · layers · key-value heads · head size · bytes. Sliding windows count as full ones, since the cache keeps every
    position. For latent attention (DeepSeek-V2, arXiv 2405.04434, §2.1): what the installed transformers stores. Layers
    may differ in their heads (Gemma 4), and the last ones may use the keys and values of others (Gemma 3n).
    """
    config = config.get_text_config()
    layers, kinds = layer_configs(config), getattr(config, "layer_types", None)
    if not layers or not isinstance(getattr(config, "hidden_size", None), int):
        return None
    kinds = kinds or ["full_attention"] * len(layers)
    stored = len(layers) - int(getattr(config, "num_kv_shared_layers", None) or 0)
    attending = [
        layer
        for layer, kind in zip(layers[:stored], kinds, strict=False)
        if "attention" in kind and "linear" not in kind
    ]
    if getattr(config, "kv_lora_rank", None):
        return int(len(attending) * _latent_width(config) * dtype.itemsize)
    widths = [_key_width(layer) for layer in attending]
    return None if None in widths else 2 * dtype.itemsize * sum(width or 0 for width in widths)


def layer_configs(config: Any) -> list[Any]:
    """The configuration of each layer of a text model: the model's own, unless its layers differ (Gemma 4)."""
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int):
        return []
    if getattr(config, "is_heterogeneous", False):
        return [config.per_layer_config[i] for i in range(count)]
    return [config] * count


def _key_width(config: Any) -> int | None:
    """Numbers in the key of one token in one layer; None if the configuration does not say."""
    heads = getattr(config, "num_attention_heads", None)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if not (isinstance(heads, int) and isinstance(kv_heads, int)):
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return kv_heads * head_dim if isinstance(head_dim, int) else None


def _latent_width(config: Any) -> int:
    """Numbers that a layer with latent attention stores per token.

    Depending on the installed transformers: the latent and the rotary part of the key (which suffice), or the expanded
    keys and values of every head.
    """
    heads, rope = config.num_attention_heads, config.qk_rope_head_dim
    module = importlib.import_module(f"transformers.models.{config.model_type}.modeling_{config.model_type}")
    if any(hasattr(kind, "expand_kv") for kind in vars(module).values() if isinstance(kind, type)):
        return int(config.kv_lora_rank + rope)
    return int(heads * (config.qk_nope_head_dim + rope + config.v_head_dim))


def format_bytes(count: float) -> str:
    """A number of bytes for display, such as 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
