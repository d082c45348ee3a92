"""The minimum that memory must deliver: bytes of weights and cache, each read once per step.

The bound assumes that all rows of a task decode together and that the weights are read once per decode step of the
whole batch. An alternative that decodes α after α reads them more often and stays below the bound by that factor. Small
models can exceed it, where their weights stay in the processor's cache between steps; large batches cannot reach it
where arithmetic takes the time.
"""

from __future__ import annotations

from typing import Any

from benchmarks.pairs import BenchPair
from benchmarks.tasks import Work


def step_weights(model: Any) -> int:
    """Bytes of the weights that one forward pass reads: all but an input embedding that is not also the head."""
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight.data_ptr() == embedding.data_ptr()
    return all_weights(model) - (0 if tied else embedding.nbytes)


def all_weights(model: Any) -> int:
    """Bytes of all the parameters, each counted once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def position_bytes(model: Any) -> int:
    """Bytes of the keys and values of one position, in all layers."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def bytes_to_read(pair: BenchPair, work: Work, models: int) -> int:
    """Bytes that a run must read.

    Args:
        pair: whose models.
        work: what they do.
        models: 1 for the base alone, 2 for the pair. A low-rank pair shares its backbone: its weights are read once
            for both, and its factors once.
    """
    return _weights(pair, models) * _passes(work) + sum(
        position_bytes(model) * _positions(work, side) for side, model in enumerate(_models(pair, models))
    )


def bytes_to_hold(pair: BenchPair, work: Work, models: int, slots: int | None = None) -> int:
    """Bytes that a run must hold: weights, and the keys and values of all rows, or of as many as there are slots."""
    if work.scoring:
        return _held_weights(pair, models)
    cache = sum(
        position_bytes(model) * sum(_longest(work, side, slots))
        for side, model in enumerate(_models(pair, models))
    )
    return _held_weights(pair, models) + cache


def _longest(work: Work, side: int, slots: int | None) -> list[int]:
    """Positions of the longest rows, at their ends; the last token is never read."""
    rows = [len(prompt.ids[side]) + work.new_tokens - 1 for prompt in work.prompts] * len(work.alphas)
    return sorted(rows, reverse=True)[:slots]


def _models(pair: BenchPair, models: int) -> list[Any]:
    return [pair.base, pair.aligned][:models]


def _factors(pair: BenchPair) -> int:
    return sum(a.nbytes + b.nbytes for a, b in pair.factors.values())


def _weights(pair: BenchPair, models: int) -> int:
    if models == 2 and pair.factors:
        return step_weights(pair.base) + _factors(pair)
    return sum(map(step_weights, _models(pair, models)))


def _held_weights(pair: BenchPair, models: int) -> int:
    if models == 2 and pair.factors:
        return all_weights(pair.base) + _factors(pair)
    return sum(map(all_weights, _models(pair, models)))


def _passes(work: Work) -> int:
    """Forward passes of each model: the prefill gives the first token, every further token is one; scoring is one."""
    return 1 if work.scoring else work.new_tokens


def _positions(work: Work, side: int) -> int:
    """Cached positions that the decode steps of all rows read: at every step the prompt and the tokens so far."""
    if work.scoring:
        return 0
    steps = work.new_tokens - 1
    per_alpha = sum(
        steps * len(prompt.ids[side])
        + steps * (steps + 1) // 2  # length grows from prompt + 1 to prompt + steps
        for prompt in work.prompts
    )
    return per_alpha * len(work.alphas)
