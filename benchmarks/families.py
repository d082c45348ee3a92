"""Model families: decoded in one ragged batch over a cache, against a pass without one. Writes docs/families.md.

Of every family a tiny random model is made, with every feature of the family that changes a decode step: windows,
sinks, experts, latent attention, per-layer embeddings, recurrent layers. Its pair decodes three prompts of different
lengths together, and each completion is compared with the models run from scratch, in float32, without a cache, for
every token. In bfloat16 each model must run in the same way, which its trial decides.
"""

from __future__ import annotations

import argparse
import copy
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from eddecode import ModelPair, RenderedPrompt, Sampler, SamplingParams
from eddecode.execution.compiled.cpu_backend import CpuBackend
from eddecode.execution.compiled.decoder_layer import compile_decoder_layer
from eddecode.execution.model_runner_factory import model_runner_for
from eddecode.models.common_layers import decoder_layers

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
VOCAB, NEW = 300, 16
PROMPTS = ((3, 5), (21, 2), (40, 33))  # tokens of the base's and of the aligned model's prompt

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {
    **{"moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4},
    **{
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
}
_LATENT: dict[str, Any] = {
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"head_dim": 4, "num_key_value_heads": 4},
}
_WINDOW: dict[str, Any] = {"sliding_window": 8}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_PER_LAYER: dict[str, Any] = {
    **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 2},
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_SECTIONS: dict[str, Any] = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
_PATCHES: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
_QWEN_VISION: dict[str, Any] = {
    **{"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
}
_QWEN_IDS: dict[str, Any] = {
    **{"image_token_id": 299, "video_token_id": 298, "vision_start_token_id": 297, "vision_end_token_id": 296}
}


def _with_vision(text: dict[str, Any], vision: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The configuration of a model that also reads images."""
    return {"text_config": {**_SHAPE, **text}, "vision_config": vision, **fields}


# model_type → (releases, fields beside _SHAPE; those of a model with a text_config replace it).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama 2 and 3, SmolLM2, DeepSeek-R1 distills", {}),
    "mistral": ("Mistral 7B", _WINDOW),
    "ministral3": ("Ministral 3", {}),
    "mixtral": ("Mixtral", _EXPERTS),
    "qwen2": ("Qwen2, Qwen2.5", {**_WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen2_moe": ("Qwen1.5-MoE", {**_EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3": ("Qwen3", {}),
    "qwen3_moe": ("Qwen3-MoE", _EXPERTS),
    "qwen3_next": (
        "Qwen3-Next",
        {
            **_EXPERTS,
            **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8},
            **{"linear_value_head_dim": 8, "shared_expert_intermediate_size": 16},
        },
    ),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma 2", _WINDOW),
    "gemma3_text": ("Gemma 3", _WINDOW),
    "gemma3n_text": (
        "Gemma 3n",
        {
            **_WINDOW,
            **_PER_LAYER,
            **{
                "laurel_rank": 4,
                "altup_num_inputs": 2,
                "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
            },
        },
    ),
    "gemma4_text": ("Gemma 4", {**_WINDOW, **_PER_LAYER, "global_head_dim": 16}),
    "phi": ("Phi-1.5, Phi-2", {}),
    "phi3": ("Phi-3, Phi-4, Phi-4-mini", {}),
    "olmo2": ("OLMo 2", {}),
    "olmo3": ("OLMo 3", _WINDOW),
    "olmoe": ("OLMoE", _EXPERTS),
    "deepseek_v2": ("DeepSeek-V2", {**_EXPERTS, **_LATENT}),
    "deepseek_v3": ("DeepSeek-V3, R1, Kimi-K2", {**_EXPERTS, **_LATENT}),
    "gpt_oss": ("gpt-oss", {**_EXPERTS, **_WINDOW}),
    "llama4_text": (
        "Llama 4",
        {
            **_EXPERTS,
            **{
                "attention_chunk_size": 8,
                "intermediate_size_mlp": 48,
                "num_experts_per_tok": 1,
                "floor_scale": 4,
            },
            "no_rope_layers": [1, 1, 1, 0],
        },
    ),
    "glm4": ("GLM-4", {}),
    "glm4_moe": ("GLM-4.5, 4.6", _EXPERTS),
    "cohere2": ("Command R7B, Command A", _WINDOW),
    "exaone4": ("EXAONE 4", _WINDOW),
    "granite": ("Granite 3", {}),
    "granitemoehybrid": (
        "Granite 4",
        {**_EXPERTS, **_MAMBA, "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 16},
    ),
    "smollm3": ("SmolLM3", {}),
    "seed_oss": ("Seed-OSS", {}),
    "minimax_m2": ("MiniMax-M2", _EXPERTS),
    "apertus": ("Apertus", {}),
    "ernie4_5_moe": ("ERNIE 4.5", _EXPERTS),
    "hunyuan_v1_dense": ("Hunyuan", {}),
    "nemotron": ("Nemotron", {}),
    "stablelm": ("StableLM 2", {}),
    "starcoder2": ("StarCoder2", _WINDOW),
    "gpt2": ("GPT-2", {}),
    "gpt_neox": ("Pythia", {}),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
    "bloom": ("BLOOM", {}),
    "falcon": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "lfm2": ("LFM2", {"layer_types": ["conv", "full_attention"] * 2}),
    "mamba": ("Mamba", {"state_size": 4}),
    "jamba": (
        "Jamba",
        {
            **{
                "attn_layer_offset": 1,
                "attn_layer_period": 2,
                "expert_layer_offset": 1,
                "expert_layer_period": 2,
            },
            **{"mamba_d_state": 4, "use_mamba_kernels": False, "num_experts": 4},
        },
    ),
    "falcon_h1": (
        "Falcon-H1",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    ),
    "nemotron_h": (
        "Nemotron-H",
        {
            "layers_block_type": ["mamba", "attention", "mlp", "moe"],
            **{
                "mamba_num_heads": 8,
                "mamba_head_dim": 8,
                "n_groups": 2,
                "ssm_state_size": 8,
                "chunk_size": 8,
            },
            **_EXPERTS,
        },
    ),
    "gemma3": (
        "Gemma 3 4B to 27B",
        _with_vision(
            _WINDOW,
            {**_PATCHES, "model_type": "siglip_vision_model"},
            **{"image_token_index": 299, "boi_token_index": 298, "eoi_token_index": 297},
        ),
    ),
    "gemma4": (
        "Gemma 4",
        {
            "text_config": {**_SHAPE, **_WINDOW, **_PER_LAYER, "global_head_dim": 16},
            **{"image_token_id": 299, "video_token_id": 298, "audio_token_id": 297},
        },
    ),
    "mistral3": (
        "Mistral Small 3.1",
        _with_vision(
            {"model_type": "mistral"},
            {**_PATCHES, "model_type": "pixtral", "head_dim": 8},
            image_token_index=299,
        ),
    ),
    "qwen2_5_vl": ("Qwen2.5-VL", _with_vision({"rope_parameters": _SECTIONS}, _QWEN_VISION, **_QWEN_IDS)),
    "qwen3_vl": (
        "Qwen3-VL",
        _with_vision(
            {"rope_parameters": _SECTIONS}, {**_QWEN_VISION, "deepstack_visual_indexes": [0]}, **_QWEN_IDS
        ),
    ),
    "mllama": (
        "Llama 3.2 Vision",
        _with_vision(
            {"cross_attention_layers": [1]},
            {
                **{"hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2},
                **{"intermediate_size": 16, "vision_output_dim": 32, "image_size": 28, "patch_size": 14},
                "intermediate_layers_indices": [0],
            },
        ),
    ),
}
# What the page says beside the measured columns.
_NOTES = {
    "phi3": "longrope: texts up to the original window; the long one with `--long-context`",
    "llama4_text": "its layers scale queries by *the* length of the cache",
    "qwen3_next": "recurrent layers",
    "granitemoehybrid": "recurrent layers",
    "lfm2": "recurrent layers",
    "mamba": "recurrent layers",
    "jamba": "recurrent layers",
    "falcon_h1": "recurrent layers",
    "nemotron_h": "recurrent layers",
    "gemma4_text": "heads differ by layer; the cache's size is counted by layer",
    "mllama": "layers for images are skipped",
}


@dataclass(frozen=True)
class Row:
    """What was found of one family."""

    kind: str
    equal: bool
    low: bool
    runner: str
    layers: str

    def __str__(self) -> str:
        """A line of the table."""
        cells = (
            f"`{self.kind}`",
            FAMILIES[self.kind][0],
            "yes" if self.equal else "**no**",
            "yes" if self.low else "**no**",
            self.runner,
            self.layers,
            _NOTES.get(self.kind, ""),
        )
        return f"| {' | '.join(cells)} |"


def measure(kind: str) -> Row:
    """One family: float32 against passes without a cache, bfloat16 by its trial."""
    base = model_of(kind)
    aligned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(7)
    for tensor in aligned.parameters():
        tensor.data += 0.2 * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = Sampler(ModelPair.from_models(base, aligned))
        prompts = [RenderedPrompt(_ids(generator, ours), _ids(generator, theirs)) for ours, theirs in PROMPTS]
        params = SamplingParams(alpha=0.5, temperature=0.0, max_new_tokens=NEW, ignore_eos=True)
        found = [completion.token_ids for completion in sampler.generate(prompts, params)]
        low = copy.deepcopy(base).to(torch.bfloat16)
        same = type(model_runner_for(low, kind)) is type(sampler.runner.model_runners[0])
    expected = [naive((base, aligned), prompt.ids) for prompt in prompts]
    return Row(kind, found == expected, same, _how(sampler.runner.model_runners[0]), _layers(base))


def model_of(kind: str) -> Any:
    """A tiny random model of a family, with weights far from zero; sinks and norms included."""
    fields = FAMILIES[kind][1]
    made = CONFIG_MAPPING[kind](**(fields if "text_config" in fields else {**_known(kind, _SHAPE), **fields}))
    causal = type(made) in transformers.AutoModelForCausalLM._model_mapping
    auto = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(made, dtype=torch.float32).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.named_parameters():
        if tensor.dim() > 1 and "text_config" in fields:
            tensor.data.normal_(0, 0.3, generator=generator)
        elif "norm" in name or "sink" in name:
            tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)
    return model


def _known(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that the family's configuration has; of the others it would keep a copy that means nothing."""
    default = CONFIG_MAPPING[kind]()
    names = {*vars(default), *getattr(default, "attribute_map", {})}
    return {name: value for name, value in fields.items() if name in names or name.endswith("token_id")}


def _ids(generator: torch.Generator, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(6, 290, (length,), generator=generator).tolist())


@torch.inference_mode()
def naive(models: Sequence[Any], texts: Sequence[Sequence[int]]) -> list[int]:
    """A greedy contrast at α = 0.5: one text at a time, no cache, float32."""
    rows, tokens = [list(text) for text in texts], []
    for _ in range(NEW):
        z, w = (
            model(
                input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row)).long(), use_cache=False
            )
            .logits[0, -1, :VOCAB]
            .float()
            for model, row in zip(models, rows, strict=True)
        )
        tokens.append(int((1.5 * z - 0.5 * w).argmax()))
        for row in rows:
            row.append(tokens[-1])
    return tokens


def _how(runner: Any) -> str:
    return {
        "CachedModelRunner": "all rows in one pass",
        "RowwiseModelRunner": "row by row",
        "UncachedModelRunner": "recomputed, without a cache",
    }[type(runner).__name__]


def _layers(model: Any) -> str:
    """Whether decoder layers are of the compiled form, which does not depend on whether it pays on this machine."""
    backend = CpuBackend()
    if not backend.available_for(torch.device("cpu"), torch.float32):
        return "not measured: no C++ compiler"
    layers = decoder_layers(model)
    known = [
        compile_decoder_layer(layer, f"layers.{i}", backend) is not None
        for i, layer in enumerate(layers or [])
        if hasattr(layer, "self_attn")
    ]
    return "compiled" if known and all(known) else "the model's own"


def table(kinds: Sequence[str], tell: Callable[[str], None] = lambda line: None) -> str:
    """The table of the page."""
    lines = [
        "| model_type | releases | float32 batch = no cache | same way in bfloat16 | rows | decoder layers | notes |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        lines.append(str(measure(kind)))
        tell(lines[-1])
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks families", description=__doc__)
    parser.add_argument("families", nargs="*", help="model_type of some families; default: all")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    options = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    made = table(options.families or list(FAMILIES), print)
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(
            re.sub(r"\| model_type .*?(?=\n\n)", lambda _: made, text, flags=re.S), encoding="utf-8"
        )
    return 1 if "**no**" in made else 0
