"""Pairs of other kinds, a few layers of large widths: two models on one backbone (LoRA), and mixtures of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from benchmarks.alternatives import ProcessorPair
from benchmarks.gpu_check.against_stages import EAGER_PAIR, compare
from benchmarks.gpu_check.context import Context, Figures, StageError
from benchmarks.gpu_check.pair_stages import params_of, prompts_of
from benchmarks.pairs import BenchPair
from benchmarks.registry import Eddecode, lora_sampler, two_model_sampler
from benchmarks.roofline import bytes_to_read
from benchmarks.tasks import Work
from eddecode import Sampler

LAYERS = 8  # of the LoRA pair; its head takes a larger share of a step than in a whole model
# Of Qwen3-30B-A3B, with 4 of its 48 layers and a smaller vocabulary.
EXPERTS: dict[str, Any] = {
    **{"hidden_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 4},
    **{"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    **{
        "norm_topk_prob": True,
        "vocab_size": 32_000,
        "initializer_range": 0.05,
        "max_position_embeddings": 1024,
    },
    **{"pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
}
DRY_EXPERTS: dict[str, Any] = {
    **{"vocab_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64, "num_local_experts": 2},
    **{"num_experts_per_tok": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
}


def lora(context: Context, found: Figures) -> None:
    """A low-rank change of every linear layer: both models are rows of one pass, which reads the weights once."""
    context.release()
    shape = context.shape if context.dry else replace(context.shape, layers=LAYERS)
    pair = context.built(shape, "lora")
    sampler = context.captured(lora_sampler(pair))
    ours = Eddecode(pair, lambda _: sampler)
    for rows in (64,) if context.brief else (1, 8, 64):
        work = _work(context, rows)
        seconds = _speed(context, found, ours, work, rows)
        share = context.share(bytes_to_read(pair, work, 2), seconds)
        found[f"{_rows(rows)} · share of the read bandwidth"] = share
    _alone(context, found, sampler)


def experts(context: Context, found: Figures) -> None:
    """A mixture of experts, against two models in eager transformers."""
    context.release()
    pair = _experts_pair(context)
    sampler = context.captured(two_model_sampler(pair))
    ours, eager = Eddecode(pair, lambda _: sampler), ProcessorPair(pair)
    for rows in (64,) if context.brief else (1, 8, 64):
        _speed(context, found, ours, _work(context, rows), rows)
    if not context.brief:
        work = _work(context, 1)
        eager.complete(work.shorter(2))
        compare(context, found, f"1 row · {EAGER_PAIR}", work, ours, eager)
    _alone(context, found, sampler)


def _experts_pair(context: Context) -> BenchPair:
    config: Any = MixtralConfig(**DRY_EXPERTS) if context.dry else Qwen3MoeConfig(**EXPERTS)
    models = []
    with torch.random.fork_rng(), torch.device(context.device):
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=context.dtype)
            models.append(model.eval().requires_grad_(False))
    return BenchPair("experts", "float32" if context.dry else "bf16", "full", *models)


def _work(context: Context, rows: int) -> Work:
    return Work(tuple(prompts_of(context, rows)), (0.3,), 2 if context.dry else 32, 1.0)


def _rows(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"


def _speed(context: Context, found: Figures, ours: Any, work: Work, rows: int) -> float:
    ours.complete(work)  # captures what it needs
    seconds = context.seconds(lambda: ours.complete(work))
    found[f"{_rows(rows)} · tokens a second"] = work.tokens / seconds
    return seconds


def _alone(context: Context, found: Figures, sampler: Sampler) -> None:
    """How each model was run, and whether completions depend on their batch."""
    for execution in sampler.execution:
        how = (
            f"{execution.compiled_layers} compiled layers, {'captured' if execution.captured else 'LAUNCHED'}"
        )
        found[execution.model] = f"{how}{', ' + execution.reason if execution.reason else ''}"
    prompts, params = prompts_of(context, 8), params_of(2 if context.dry else 16, 1.0)
    together = [c.token_ids for c in sampler.generate(prompts, params)]
    alone = [sampler.generate([prompt], params)[0].token_ids for prompt in prompts]
    same = sum(a == b for a, b in zip(together, alone, strict=True))
    found["completions alone = among 8, of 8"] = same
    if same != len(prompts):
        raise StageError("a completion depends on its batch")
