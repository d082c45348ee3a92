"""Adapters of every form: the merged model is PEFT's own unmerged model, and a fault in a file is an error."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eddecode import ModelPair
from eddecode.errors import PairError
from helpers import tiny

peft = pytest.importorskip("peft")

LINEAR = ["q_proj", "v_proj", "down_proj"]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head and embedding": {"target_modules": ["lm_head", "embed_tokens"]},
    "embedding, tied": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "head saved": {"modules_to_save": ["lm_head"]},
    "embedding saved": {"modules_to_save": ["embed_tokens"]},
    "norm saved": {"modules_to_save": ["norm"]},
    "tokens": {"trainable_token_indices": [7, 250]},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 64}},
    "bias of LoRA": {"lora_bias": True},
    "bias": {"bias": "all"},
}
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.1}


def save_adapter(
    folder: Path, form: str, tied: bool, dtype: torch.dtype = torch.float32, rows: int = tiny.VOCAB
) -> tuple[Path, Path, Any]:
    """(base, adapter, the unmerged model); every trained tensor is far from its beginning."""
    model = tiny.tiny_model("qwen2", tie_word_embeddings=tied, **SHAPE).to(dtype)
    base = tiny.save_model(folder / "base", model, tiny.tiny_tokenizer(chat=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rows != tiny.VOCAB:
            model.resize_token_embeddings(rows, mean_resizing=False)
        settings = {"r": 4, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **FORMS[form]}
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += (0.05 * torch.randn(parameter.shape, generator=generator)).to(parameter)
        wrapped.save_pretrained(folder / "adapter", save_embedding_layers=rows != tiny.VOCAB or "auto")
    extra = tuple(f"<extra{i}>" for i in range(rows - tiny.VOCAB))
    tiny.tiny_tokenizer(extra=extra).save_pretrained(folder / "adapter")
    return base, folder / "adapter", wrapped


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    ids = torch.tensor([[1, 7, 250, 9, 20, 33, 299, 5, *range(100, 120)]])
    result: Tensor = model(ids).logits[0]
    return result


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_merged_is_unmerged(tmp_path: Path, form: str, tied: bool) -> None:
    """Also where one weight is embedding and head: merging into one of them must not change the other."""
    base, adapter, wrapped = save_adapter(tmp_path, form, tied)
    pair = ModelPair.load(base, adapter)
    torch.testing.assert_close(logits(pair.aligned), logits(wrapped), rtol=1e-4, atol=1e-4)
    moved = (logits(pair.base) - logits(wrapped)).abs().max()
    assert moved > 0.1  # an adapter that changes nothing shows nothing


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["plain", "head"])
def test_an_adapter_with_added_tokens(tmp_path: Path, form: str) -> None:
    base, adapter, wrapped = save_adapter(tmp_path, form, tied=False, rows=304)
    pair = ModelPair.load(base, adapter)
    torch.testing.assert_close(logits(pair.aligned), logits(wrapped), rtol=1e-4, atol=1e-4)
    assert pair.aligned.get_output_embeddings().weight.shape[0] == 304


# Faults ----------------------------------------------------------------------------------------------------------


def refused(base: Path, adapter: Path, message: str) -> None:
    with pytest.raises(PairError, match=message):
        ModelPair.load(base, adapter)


def test_tensors_that_the_adapter_config_does_not_account_for(tmp_path: Path) -> None:
    base, adapter, _ = save_adapter(tmp_path, "plain", tied=False)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps({**config, "target_modules": ["q_proj", "v_proj"]})
    )
    refused(base, adapter, r"holds 4 tensors that its adapter_config.json does not account for: .*down_proj")
    (adapter / "adapter_config.json").write_text(
        json.dumps({**config, "target_modules": [*LINEAR, "o_proj"]})
    )
    refused(base, adapter, r"cannot be merged into .*missing adapter keys")
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    refused(base, adapter, r"cannot be merged into .*size mismatch")


def test_a_merge_that_is_not_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that merges wrongly, in bfloat16 too, where an error of that size is a few roundings."""
    base, adapter, _ = save_adapter(tmp_path, "head", tied=False, dtype=torch.bfloat16)
    ModelPair.load(base, adapter)
    linear = peft.tuners.lora.Linear
    merge = linear.merge
    monkeypatch.setattr(
        linear,
        "merge",
        lambda self, *a, **k: None if self.out_features == tiny.VOCAB else merge(self, *a, **k),
    )
    refused(base, adapter, r"is not the same when it is merged: logits are off by .* rounding explains")


def test_an_adapter_that_bfloat16_rounds_away(tmp_path: Path) -> None:
    base, adapter, _ = save_adapter(tmp_path, "plain", tied=False, dtype=torch.bfloat16)
    file = adapter / "adapter_model.safetensors"
    save_file(
        {name: 0.05 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"}
    )
    notes = [str(note) for note in ModelPair.load(base, adapter).notes]
    assert any("merging in bfloat16 rounds away much of the adapter" in note for note in notes)


def test_without_memory_for_the_comparison_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    base, adapter, _ = save_adapter(tmp_path, "plain", tied=False)
    monkeypatch.setattr("eddecode.models.adapters.float32_logits", full)
    notes = [str(note) for note in ModelPair.load(base, adapter).notes]
    assert any("was not compared with peft's own unmerged pass" in note for note in notes)


def test_adapters_that_are_none(tmp_path: Path) -> None:
    """Integers in the place of weights, and weights that change nothing."""
    base, adapter, _ = save_adapter(tmp_path, "plain", tied=False)
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    zeros = {name: 0 * tensor if "lora_B" in name else tensor for name, tensor in weights.items()}
    save_file(zeros, file, metadata={"format": "pt"})
    notes = [str(note) for note in ModelPair.load(base, adapter).notes]
    assert any("the adapter changes nothing: the aligned model is the base" in note for note in notes)
    save_file({k: v.to(torch.int8) for k, v in weights.items()}, file, metadata={"format": "pt"})
    refused(base, adapter, r"holds torch.int8 in the file, and peft has torch.float32 there")
