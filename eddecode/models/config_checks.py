"""Checks of the numbers in config.json that decide what a model computes, before a library builds a model from them.

A layer count of zero, a negative head size or a NaN is not refused by every library: the model is then smaller than its
weights, or its logits are no numbers. What the files must agree with is checked after loading (`loaded_weights`); here
is only what no model can have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from eddecode.errors import PairError

# Fields that are a count or a size. Those of vision and audio parts are checked too: they have the same names.
_COUNTS = frozenset(
    {
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *(
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
            "sliding_window",
            "attention_chunk_size",
        ),
        *("n_embd", "n_layer", "n_head", "n_positions", "num_experts_per_tok", "global_head_dim"),
        *("moe_intermediate_size", "num_local_experts", "kv_lora_rank"),
    }
)
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_OFF = {"sliding_window": (0, -1), "attention_chunk_size": (0,)}  # written where there is none
_POSITIVE = ("rope_theta", "rotary_emb_base", "final_logit_softcapping", "attn_logit_softcapping")
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_TOKEN_IDS = ("eos_token_id", "bos_token_id", "pad_token_id")
_MAX_EPSILON = 0.1  # of a normalization; released models have 1e-8 to 1e-3
_MAX_DEPTH = 20


def check_numbers(config: Mapping[str, Any], where: str, file: str = "config.json") -> None:
    """PairError for a number in a configuration that no model can have.

    Args:
        config: the content of `file`.
        where: the checkpoint in messages.
        file: its name in messages.
    """
    for path, value in _numbers(config):
        key = path.rpartition(".")[2]
        problem = _problem(key, value)
        if problem is not None:
            raise PairError(
                f"{where} has {path} = {value!r} in {file}; expected {problem}. Fetch {file} again, or correct it"
            )


def check_layer_count(config: Mapping[str, Any], tensors: int, where: str) -> None:
    """PairError for more layers than the files have tensors: building such a model would take forever."""
    for path, value in _numbers(config):
        if path.rpartition(".")[2] in _LAYER_COUNTS and _is_int(value) and value > tensors:
            raise PairError(
                f"{where} has {path} = {value} in config.json, and its files have only {tensors} tensors; check that "
                "config.json belongs to these files"
            )


def _numbers(config: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field that is not an object."""
    for key, value in config.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and depth < _MAX_DEPTH and key not in _TOKEN_IDS:
            yield from _numbers(value, name, depth + 1)
        else:
            yield name, value


def _problem(key: str, value: Any) -> str | None:
    """What is expected instead of a field's value; None where it is possible."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if value is None:
        return None
    for expected, keys, is_possible in _RULES:
        if key in keys:
            return None if is_possible(key, value) else expected
    return None


def _is_count(key: str, value: Any) -> bool:
    """A list has a number per layer, which the model's own configuration checks."""
    return isinstance(value, list) or (_is_int(value) and (value > 0 or value in _OFF.get(key, ())))


def _is_token(_: str, value: Any) -> bool:
    return all(_is_int(i) for i in (value if isinstance(value, list) else [value]))


def _is_epsilon(_: str, value: Any) -> bool:
    return _is_number(value) and 0 <= value <= _MAX_EPSILON


def _is_positive(_: str, value: Any) -> bool:
    return _is_number(value) and value > 0


_RULES: tuple[tuple[str, Collection[str], Callable[[str, Any], bool]], ...] = (
    ("a token id, a list of ids, or null", _TOKEN_IDS, _is_token),
    ("an integer above 0", _COUNTS, _is_count),
    (f"a number from 0 to {_MAX_EPSILON:g}", _EPSILONS, _is_epsilon),
    ("a number above 0", _POSITIVE, _is_positive),
)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
