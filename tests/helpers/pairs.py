"""What tests of pairs share: logits of a fixed text, notes, edited settings, and adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from eddecode import ModelPair

IDS = torch.arange(10, 30)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def noted(pair: ModelPair, text: str) -> bool:
    return any(text in str(note) for note in pair.notes)


def rewrite(path: Path, drop: tuple[str, ...] = (), **fields: Any) -> None:
    """Change fields of a JSON file."""
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in drop}))


def save_adapter(base: Path, folder: Path, **settings: Any) -> Any:
    """A LoRA adapter with random weights over the checkpoint in `base`; returns the wrapped model."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **settings
    )
    wrapped = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return wrapped


def swap_tokens(folder: Path, *pairs: tuple[int, int]) -> None:
    """Exchange the meanings of ids in a saved tokenizer."""
    content = json.loads((folder / "tokenizer.json").read_text())
    tokens = {i: token for token, i in content["model"]["vocab"].items()}
    for a, b in pairs:
        tokens[a], tokens[b] = tokens[b], tokens[a]
    content["model"]["vocab"] = {token: i for i, token in tokens.items()}
    (folder / "tokenizer.json").write_text(json.dumps(content))
