"""Tiny pairs of every family on the device: the tokens of their own forward passes, and how each is run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.gpu_check.context import Context, Figures, Rerun, StageError
from eddecode import ModelPair, RenderedPrompt, Sampler, SamplingParams
from eddecode.execution.factory import separate_pair_runner

SHAPE: dict[str, Any] = {
    **{"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **{"initializer_range": 0.3, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
}
HEADS = {**SHAPE, "head_dim": 8}
GEMMA = {**HEADS, "sliding_window": 8, "query_pre_attn_scalar": 8}
EXPERTS = {**SHAPE, "num_experts_per_tok": 2}
# Family → class of its configuration, and its fields.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SHAPE),
    "mistral": ("MistralConfig", {**SHAPE, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", SHAPE),
    "qwen3": ("Qwen3Config", HEADS),
    "phi3": ("Phi3Config", SHAPE),
    "gemma": ("GemmaConfig", HEADS),
    "gemma2": ("Gemma2Config", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0}),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
    "olmo2": ("Olmo2Config", SHAPE),
    "smollm3": ("SmolLM3Config", {**SHAPE, "no_rope_layers": [1, 0], "use_sliding_window": False}),
    "granite": ("GraniteConfig", {**SHAPE, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 96}),
    "mixtral": ("MixtralConfig", {**EXPERTS, "num_local_experts": 4, "sliding_window": None}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            **{**HEADS, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24},
            **{"norm_topk_prob": True, "mlp_only_layers": [1]},
        },
    ),
}
NAMED = ("gpt2", "qwen3", "gemma2", "gemma3", "mixtral", "qwen2_moe")  # in the order of cost
DRY = ("gpt2",)  # a model's own forward pass; the others are pairs of other stages
OWN = ("gpt2",)  # families whose layers are not compiled
NEW, ALPHA = 12, 0.5


def families(context: Context, found: Figures) -> None:
    """How each family is run, and whether its greedy tokens are those of two plain forward passes in float32.

    A family that has layers of a known form must also run them in Triton.
    """
    _try(NAMED, context, found)


def more_families(context: Context, found: Figures) -> None:
    """As `families`, of the others."""
    _try([name for name in FAMILIES if name not in NAMED], context, found)


def _try(names: Sequence[str], context: Context, found: Figures) -> None:
    wrong = []
    for name in [name for name in names if name in DRY] if context.dry else names:
        try:
            found[name], right = _one(name, context)
        except Exception as error:  # the other families are still to be tried
            found[name], right = f"FAILED: {type(error).__name__}: {str(error)[:150]}", False
        wrong += [] if right else [name]
        found[f"families right, of {len(names)}"] = len([n for n in names if n in found]) - len(wrong)
    if wrong:
        raise StageError("families that do not decode as they should: " + ", ".join(wrong))


def _one(name: str, context: Context) -> tuple[str, bool]:
    pair = _pair(name, context)
    new = 2 if context.dry else NEW
    prompts = [
        RenderedPrompt(tuple(range(3, 3 + n)), tuple(range(7, 19 - n)))
        for n in (1, 9, 5)[: 2 if context.dry else 3]
    ]
    params = SamplingParams(alpha=ALPHA, temperature=0.0, max_new_tokens=new, ignore_eos=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler = Sampler(pair)
        if context.dry:
            sampler._runner = separate_pair_runner(pair, Rerun)
        tokens = [c.token_ids for c in sampler.generate(prompts, params)]
        alone = [sampler.generate([prompt], params)[0].token_ids for prompt in prompts]
    right = sum(a == _plain(pair, prompt, new) for a, prompt in zip(tokens, prompts, strict=True))
    runner: Any = sampler.runner.model_runners[0]
    layers = getattr(runner, "layers", None)
    how = "captured" if hasattr(runner, "capture") else "launched"
    how += f", {layers.num_layers} compiled layers" if layers is not None else ", recomputed"
    how += ", one call" if layers is not None and layers.stack is not None else ""
    notes = "; ".join(sorted({str(w.message)[:160] for w in caught if issubclass(w.category, UserWarning)}))
    equal = sum(a == b for a, b in zip(tokens, alone, strict=True))
    text = f"{right}/{len(prompts)} right, {equal}/{len(prompts)} alone as together; {how}"
    text += f"; {notes}" if notes else ""
    compiled = name in OWN or (layers is not None and layers.num_layers == len(pair.base.base_model.layers))
    return text, right == len(prompts) and compiled


def _pair(name: str, context: Context) -> ModelPair:
    kind, fields = FAMILIES[name]
    models = []
    with torch.random.fork_rng():
        for seed in (0, 1):
            torch.manual_seed(seed)
            config = getattr(transformers, kind)(**fields)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            models.append(model.eval().requires_grad_(False).to(context.device))
    return ModelPair.from_models(*models)


@torch.inference_mode()
def _plain(pair: ModelPair, prompt: RenderedPrompt, new: int) -> list[int]:
    """Greedy tokens of the contrast by two forward passes over the whole text for each."""
    tokens: list[int] = []
    for _ in range(new):
        z = [
            model(input_ids=torch.tensor([[*ids, *tokens]], device=model.device), use_cache=False)
            .logits[0, -1]
            .float()
            for model, ids in zip(pair.models, prompt.ids, strict=True)
        ]
        tokens.append(int(((1 + ALPHA) * z[0] - ALPHA * z[1]).argmax()))
    return tokens
