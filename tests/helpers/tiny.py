"""Tiny random models and tokenizers, made in milliseconds, for the tests of all packages.

The models are real Hugging Face causal LMs of the architectures that the engine supports, with a few thousand
parameters each and weights large enough that their distributions are far from uniform. The tokenizer is a
byte-level BPE written out by hand: six special tokens, the 256 bytes, then merges of frequent letters, so any text
round-trips. Everything depends on its arguments only; the global random state is not changed.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
)

PAD, BOS, EOS, USER, ASSISTANT, SYSTEM = range(6)
SPECIALS = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
VOCAB = 300  # the tokenizer's size and the models' width unless a test asks for another

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}

# The window is shorter than most tests' texts, so a cache that drops too much or too little gives other tokens.
WINDOW = 8

ARCHITECTURES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _GROUPED),
    "qwen2": (Qwen2Config, _GROUPED),
    "mistral": (MistralConfig, {**_GROUPED, "sliding_window": WINDOW}),
    "gpt2": (
        GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3},
    ),
    "gpt_neox": (GPTNeoXConfig, _SHAPE),
    "phi": (PhiConfig, _SHAPE),
    "gemma2": (
        Gemma2Config,
        {
            **_GROUPED,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,  # low enough to change these small models' scores
            "final_logit_softcapping": 10.0,
            "attn_implementation": "eager",  # an older transformers would leave the scores uncapped
        },
    ),
    "mixtral": (MixtralConfig, {**_EXPERTS, "num_local_experts": 4, "sliding_window": None}),
    "qwen2_moe": (
        Qwen2MoeConfig,
        {
            **_EXPERTS,
            "num_experts": 4,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
        },
    ),
}


def tiny_config(arch: str = "llama", vocab: int = VOCAB, **overrides: Any) -> PreTrainedConfig:
    """The configuration of a tiny model; `overrides` are fields of the architecture's own configuration."""
    kind, fields = ARCHITECTURES[arch]
    special = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS} if vocab > EOS else {}
    return kind(**{**fields, "vocab_size": vocab, **special, **overrides})


def tiny_model(
    arch: str = "llama",
    vocab: int = VOCAB,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> PreTrainedModel:
    """A random causal LM in eval mode on the CPU; equal arguments give equal weights."""
    config = tiny_config(arch, vocab, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.to(dtype).eval().requires_grad_(False)


def tiny_aligned(base: PreTrainedModel, seed: int = 1, amount: float = 0.2) -> PreTrainedModel:
    """A copy of `base` with every tensor changed by about `amount` of its own norm, as if fine-tuned."""
    aligned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    for tensor in aligned.parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        scale = amount * tensor.float().norm() / max(tensor.numel(), 1) ** 0.5
        tensor.data += (noise * scale).to(tensor.dtype)
    return aligned


def tiny_pair_models(
    arch: str = "llama", vocab: int = VOCAB, seed: int = 0, **overrides: Any
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """(base, aligned): two models that differ, as a release and its pre-trained base do."""
    base = tiny_model(arch, vocab, seed, **overrides)
    return base, tiny_aligned(base, seed + 1)


def tiny_tokenizer(
    vocab: int = VOCAB,
    *,
    chat: bool = True,
    add_bos: bool = True,
    extra: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with `vocab` ids (at least 262), plus one special token per name in `extra`.

    add_bos: whether `tokenizer(text)` adds <s> (as Llama's does, and GPT-2's does not).
    """
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = "etaoinshrdlucmfwypvbgkj"
    pairs = [(left, right) for left, right in itertools.product("Ġ" + letters, letters)]
    room = vocab - len(SPECIALS) - len(bytes_)
    if not 0 <= room <= len(pairs):
        raise ValueError(f"tiny_tokenizer makes 262 to {262 + len(pairs)} ids, not {vocab}")
    merges = pairs[:room]
    tokens = [*SPECIALS, *bytes_, *(left + right for left, right in merges)]
    backend = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, fuse_unk=False)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<pad>",  # never used; without one, a tokenizer loaded as Qwen2's would add a token of its own
    )
    if extra:
        tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_model(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | None = None,
    shard: str | None = None,
) -> Path:
    """Write one checkpoint as safetensors; `shard` is the largest size of a file, such as "20KB"."""
    model.save_pretrained(path, **({"max_shard_size": shard} if shard else {}))
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    return path


def save_pair(
    folder: Path,
    arch: str = "llama",
    vocab: int = VOCAB,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    shard: str | None = None,
    **overrides: Any,
) -> tuple[Path, Path]:
    """Two checkpoints under `folder`: base (no chat template) and aligned (with one), sharing a tokenizer."""
    base, aligned = tiny_pair_models(arch, vocab, seed, **overrides)
    size = max(262, min(vocab, VOCAB))  # a wider model is padded, as many released ones are
    return (
        save_model(folder / "base", base.to(dtype), tiny_tokenizer(size, chat=False), shard),
        save_model(folder / "aligned", aligned.to(dtype), tiny_tokenizer(size), shard),
    )
