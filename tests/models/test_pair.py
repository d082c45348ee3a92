"""ModelPair: loading from folders, the hub, adapters and memory. Errors: test_pair_refusals.py."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.process import status_bytes
from eddecode import ModelPair, Sampler, SamplingParams
from eddecode.errors import PairError
from helpers import tiny
from helpers.pairs import logits, noted, rewrite, save_adapter

# Loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "shard"),
    [*((arch, "20KB") for arch in tiny.ARCHITECTURES), ("llama", None), ("qwen2_moe", None)],
)
def test_loaded_models_compute_what_transformers_would(tmp_path: Path, arch: str, shard: str | None) -> None:
    folders = tiny.save_pair(tmp_path, arch, shard=shard)
    assert (len(list(folders[0].glob("*.safetensors"))) > 1) == (shard is not None)
    pair = ModelPair.load(*folders, dtype="float32")
    capped = {"attn_implementation": "eager"} if arch == "gemma2" else {}  # older releases' sdpa does not cap
    for model, folder in zip(pair.models, folders, strict=True):
        assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(folder, **capped)))
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert model.config._attn_implementation in ("sdpa", "eager")
    # transformers' own class for Qwen2 has other splitting rules than this tokenizer's file
    assert [note for note in pair.notes if "tokenizer.json" not in note.message] == []
    assert pair.names == ("base", "aligned")
    assert pair.logit_weights(0.3) == (1.3, -0.3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16, "bf16"])
def test_dtype_is_the_requested_one(pair_folders: tuple[Path, Path], dtype: str | torch.dtype) -> None:
    pair = ModelPair.load(*pair_folders, dtype=dtype)
    expected = (
        dtype if isinstance(dtype, torch.dtype) else getattr(torch, {"bf16": "bfloat16"}.get(dtype, dtype))
    )
    assert {p.dtype for model in pair.models for p in model.parameters()} == {expected}


def test_auto_keeps_the_saved_dtypes_and_notes_that_they_differ(tmp_path: Path) -> None:
    base, _ = tiny.save_pair(tmp_path / "a", dtype=torch.bfloat16)
    _, aligned = tiny.save_pair(tmp_path / "b")
    pair = ModelPair.load(base, aligned)
    assert (pair.base.dtype, pair.aligned.dtype) == (torch.bfloat16, torch.float32)
    assert noted(pair, "dtype: base is in bfloat16, aligned in float32")
    assert not noted(ModelPair.load(base, aligned, dtype="float32"), "dtype")


def test_device_and_device_map(pair_folders: tuple[Path, Path]) -> None:
    pytest.importorskip("accelerate")
    mapped = ModelPair.load(*pair_folders, device_map={"": "cpu"})
    placed = ModelPair.load(*pair_folders, device="cpu")
    assert mapped.device == placed.device == torch.device("cpu")
    assert torch.equal(logits(mapped.base), logits(placed.base))


def test_flash_attention_in_the_config_is_replaced(tmp_path: Path) -> None:
    folders = tiny.save_pair(tmp_path)
    for folder in folders:
        rewrite(folder / "config.json", attn_implementation="flash_attention_2")
    pair = ModelPair.load(*folders)
    assert [model.config._attn_implementation for model in pair.models] == ["sdpa", "sdpa"]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory from Linux's /proc"
)
def test_loading_holds_no_tensor_twice(tmp_path: Path) -> None:
    """Peak memory grows by the weights (pages of the file, or their conversion), not by them and a copy."""
    model = tiny.tiny_model(hidden_size=256, intermediate_size=1024, num_hidden_layers=12)
    folder = tiny.save_model(tmp_path / "model", model, tiny.tiny_tokenizer())
    weights = 2 * sum(p.nbytes for p in model.parameters())
    del model

    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    pair = ModelPair.load(folder, shutil.copytree(folder, tmp_path / "copy"))
    assert all(bool(torch.isfinite(logits(m)).all()) for m in pair.models)  # every page is touched
    assert status_bytes("VmHWM") - before < 1.4 * weights


# From the hub ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_a_hub_id_downloads_only_the_files_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str | None
) -> None:
    """A folder in the place of the hub: the requested files are copied, by patterns and revision."""
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    tiny.save_pair(hub / "v2", shard=shard)
    for junk in ("pytorch_model.bin", "consolidated.safetensors", "original/x.json", "model.py"):
        (hub / "v2" / "base" / junk).parent.mkdir(exist_ok=True)
        (hub / "v2" / "base" / junk).write_text("junk")

    def fetch(name: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        source = hub / str(revision) / name.split("/")[1]
        for file in (file for file in source.rglob("*") if file.is_file()):
            path = str(file.relative_to(source))
            wanted = any(fnmatch(path, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch(path, pattern) for pattern in ignore_patterns):
                (cache / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / name / path)
        return str(cache / name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    pair = ModelPair.load("org/base", "org/aligned", revision="v2")
    assert torch.equal(logits(pair.base), logits(AutoModelForCausalLM.from_pretrained(hub / "v2" / "base")))
    fetched = {file.name for file in (cache / "org" / "base").iterdir()}
    expected = {file.name for file in (hub / "v2" / "aligned").iterdir()}  # the same files, and no junk
    assert fetched == expected - {"chat_template.jinja"}
    assert pair.describe()["base"]["source"] == "org/base"


# Adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["lm_head"]}], ids=["lora", "with a head"])
def test_an_adapter_is_merged_into_a_copy(
    pair_folders: tuple[Path, Path], tmp_path: Path, settings: Any
) -> None:
    base, _ = pair_folders
    adapted = save_adapter(base, tmp_path / "adapter", **settings)
    pair = ModelPair.load(base, tmp_path / "adapter", dtype="float32")
    torch.testing.assert_close(logits(pair.aligned), logits(adapted), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(pair.base), logits(AutoModelForCausalLM.from_pretrained(base)))
    ours, theirs = ({n: p.data_ptr() for n, p in model.named_parameters()} for model in pair.models)
    targets = ("q_proj", "up_proj", *settings.get("modules_to_save", ()))
    for (
        name,
        place,
    ) in ours.items():  # what the adapter changed is the aligned model's own; the rest is held once
        assert (theirs[name] == place) != (name.split(".")[-2] in targets)
    assert not any(parameter.requires_grad for parameter in pair.aligned.parameters())
    assert type(pair.aligned) is type(pair.base)
    assert pair.describe()["aligned"]["adapter"]
    assert pair.aligned_tokenizer is pair.base_tokenizer
    assert noted(pair, "an adapter (LORA), merged into a copy of the base in torch.float32")


def test_an_adapter_changes_only_its_target_modules(pair_folders: tuple[Path, Path], tmp_path: Path) -> None:
    save_adapter(pair_folders[0], tmp_path)
    moved = ModelPair.load(pair_folders[0], tmp_path).describe(tensors=True)["tensors"]["moved"]
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "up_proj"}


def test_an_adapter_of_another_base_is_noted(pair_folders: tuple[Path, Path], tmp_path: Path) -> None:
    save_adapter(pair_folders[0], tmp_path)
    rewrite(tmp_path / "adapter_config.json", base_model_name_or_path="someone/else")
    assert noted(ModelPair.load(pair_folders[0], tmp_path), "trained on 'someone/else' and is merged into")


def test_an_adapter_with_added_tokens_resizes_the_embedding(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, _ = tiny.save_pair(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(tiny.VOCAB + 1, mean_resizing=False)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    tiny.tiny_tokenizer(extra=("<|tool|>",)).save_pretrained(tmp_path / "adapter")
    pair = ModelPair.load(base, tmp_path / "adapter")
    assert pair.describe()["aligned"]["logit_width"] == tiny.VOCAB + 1
    assert pair.vocabulary.tolist() == [True] * tiny.VOCAB


# In memory -------------------------------------------------------------------------------------------------------


def test_from_models_refuses_other_kinds_of_models() -> None:
    model = tiny.tiny_model()
    with pytest.raises(
        PairError, match=r"the aligned model is a LlamaModel; expected a transformers causal language"
    ):
        ModelPair.from_models(model, model.model)
    with pytest.raises(PairError, match=r"the base model is a Linear"):
        ModelPair.from_models(torch.nn.Linear(1, 1), model)


def test_models_without_weights_and_places_that_are_none() -> None:
    base, aligned = tiny.tiny_pair_models()
    with pytest.raises(PairError, match="the base model is on the device meta, without weights"):
        ModelPair.from_models(base.to("meta"), aligned)
    with pytest.raises(PairError, match="the base checkpoint is None; expected a folder or a hub id"):
        ModelPair.load(None, "x")  # type: ignore[arg-type]


def test_from_models_sets_eval_mode_without_gradients() -> None:
    models = [model.train().requires_grad_(True) for model in tiny.tiny_pair_models()]
    pair = ModelPair.from_models(*models)
    assert not any(model.training or p.requires_grad for model in pair.models for p in model.parameters())
    assert "LlamaForCausalLM" in repr(pair)


def test_outputs_that_a_config_asks_for_change_nothing(pair_folders: tuple[Path, Path]) -> None:
    rewrite(
        pair_folders[1] / "config.json", return_dict=False, output_hidden_states=True, output_attentions=True
    )
    pair = ModelPair.load(*pair_folders)
    assert len(Sampler(pair).generate("hello", SamplingParams(alpha=0.5, max_new_tokens=2))[0].token_ids) == 2


def test_soft_capped_attention_is_set_to_eager(tmp_path: Path) -> None:
    folders = tiny.save_pair(tmp_path, "gemma2")
    in_memory = tiny.tiny_pair_models("gemma2")
    for model in in_memory:
        model.config._attn_implementation = "sdpa"
    for pair in (ModelPair.load(*folders, dtype="float32"), ModelPair.from_models(*in_memory)):
        assert {model.config._attn_implementation for model in pair.models} == {"eager"}
