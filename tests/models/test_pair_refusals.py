"""Errors of ModelPair: damaged, incomplete and unsupported checkpoints, and tokenizers that disagree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from eddecode import ModelPair
from eddecode.errors import PairError
from helpers import tiny
from helpers.pairs import noted, swap_tokens


@pytest.fixture
def folders(pair_folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the two checkpoints that a test may damage."""
    return tuple(Path(shutil.copytree(f, tmp_path / f.name)) for f in pair_folders)  # type: ignore[return-value]


def refused(base: Any, aligned: Any, message: str, **options: Any) -> None:
    with pytest.raises(PairError, match=message):
        ModelPair.load(base, aligned, **options)


def rewrite(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# Missing files ---------------------------------------------------------------------------------------------------


def test_neither_a_folder_nor_a_reachable_hub_id(folders: tuple[Path, Path], tmp_path: Path) -> None:
    refused(
        tmp_path / "nowhere",
        folders[1],
        r"base checkpoint .*nowhere' is no local folder, and as a hub id .*spelling",
    )
    refused(folders[0], "nobody/nothing", r"aligned checkpoint 'nobody/nothing' is no local folder")
    refused(folders[0], "nobody/nothing", r"at revision 'v2'", aligned_revision="v2")
    refused(folders[0] / "config.json", folders[1], r"config.json' is a file; expected a folder or a hub id")


def test_a_folder_without_config_or_weights(folders: tuple[Path, Path]) -> None:
    (folders[1] / "model.safetensors").unlink()
    refused(
        *folders,
        r"aligned checkpoint .* has no weights; expected model.safetensors or model.safetensors.index.json",
    )
    (folders[1] / "config.json").unlink()
    refused(
        *folders, r"aligned checkpoint .* has no config.json; expected a folder as save_pretrained writes it"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"is not readable JSON"),
        ("[]", r"holds a list; expected a"),
        ('{"a": {"b": 1, "b": 2}}', r"is not readable JSON \('b' is there twice, as 1 and as 2\)"),
    ],
)
def test_a_broken_config(folders: tuple[Path, Path], text: str, message: str) -> None:
    (folders[0] / "config.json").write_text(text)
    refused(*folders, r"config\.json " + message)


# No safetensors, or damaged ones ---------------------------------------------------------------------------------


def test_a_pickle_is_never_opened(folders: tuple[Path, Path], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    (folders[1] / "model.safetensors").unlink()
    torch.save({"a": Trap()}, folders[1] / "pytorch_model.bin")
    refused(
        *folders, r"its weights as pytorch_model.bin only; expected model.safetensors\..*call save_pretrained"
    )
    assert not (tmp_path / "sprung").exists()


def test_a_truncated_file_is_named(folders: tuple[Path, Path]) -> None:
    file = folders[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(
        *folders,
        rf"{file} is corrupt or truncated: it should have \d+ bytes by its header, and it has \d+. Fetch",
    )


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 64, (8).to_bytes(8, "little") + b"[1,2,3]]"])
def test_a_file_without_a_header_is_named(folders: tuple[Path, Path], content: bytes) -> None:
    (folders[0] / "model.safetensors").write_bytes(content)
    refused(*folders, rf"{folders[0]}/model.safetensors is corrupt or truncated")


def test_a_git_lfs_pointer_is_recognized(folders: tuple[Path, Path]) -> None:
    (folders[0] / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    refused(*folders, r"is a git-lfs pointer and not the weights themselves; run `git lfs pull`")


def test_a_truncated_shard_and_a_missing_one_are_named(tmp_path: Path) -> None:
    folders = tiny.save_pair(tmp_path, shard="20KB")
    shard = sorted(folders[1].glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(*folders, rf"{shard.name} is corrupt or truncated")
    shard.unlink()
    refused(*folders, rf"lacks the shard {shard.name} \(its index names \d+\)")


def test_shards_of_two_saves_are_refused(tmp_path: Path) -> None:
    folders = tiny.save_pair(tmp_path, shard="20KB")
    first, second = sorted(folders[0].glob("model-*.safetensors"))[:2]
    shutil.copy(first, second)
    refused(
        *folders,
        rf"{second.name} lacks \d+ tensors that the index lists for it, such as \S+; the shards are from",
    )


def test_an_index_may_not_point_outside_its_folder(tmp_path: Path) -> None:
    folders = tiny.save_pair(tmp_path, shard="20KB")
    rewrite(folders[0] / "model.safetensors.index.json", weight_map={"a": "../aligned/x.safetensors"})
    refused(*folders, r"names the shard '../aligned/x.safetensors'; expected a file name in the same folder")


def change_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_would_be_left_random(folders: tuple[Path, Path]) -> None:
    change_weights(folders[1], lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refused(*folders, r"lacks 1 weights .* left random: model.layers.1.mlp.up_proj.weight. Fetch it again")


def test_weights_of_another_shape(folders: tuple[Path, Path]) -> None:
    rewrite(folders[0] / "config.json", intermediate_size=56)
    refused(*folders, r"the base checkpoint .* cannot be loaded: .*")


def test_weights_that_the_model_would_not_use(folders: tuple[Path, Path]) -> None:
    change_weights(folders[0], lambda tensors: tensors.update({"model.layers.7.extra": torch.zeros(2)}))
    refused(
        *folders, r"holds 1 tensors that are not part of the model: model.layers.7.extra. Check that config"
    )


@pytest.mark.parametrize("count", [1, 0, -1])
def test_fewer_layers_in_the_config_than_in_the_files(folders: tuple[Path, Path], count: int) -> None:
    rewrite(folders[1] / "config.json", num_hidden_layers=count)
    refused(
        *folders, r"not part of the model: model.layers.1" if count == 1 else r"expected an integer above 0"
    )


# Code and other kinds of models ----------------------------------------------------------------------------------


def test_a_checkpoint_that_needs_its_own_code(folders: tuple[Path, Path]) -> None:
    (folders[1] / "modeling_mine.py").write_text("raise SystemExit('this code was run')")
    mapped = {"AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Model"}
    rewrite(folders[1] / "config.json", model_type="mine", auto_map=mapped)
    refused(
        *folders,
        r"aligned checkpoint .* needs its own code \(auto_map .*'mine'\); such code is never run",
    )
    rewrite(folders[1] / "config.json", model_type="llama")
    notes = [str(note) for note in ModelPair.load(*folders).notes]
    assert any(
        "contains its own code. It is ignored; transformers' own llama is used" in note for note in notes
    )


def test_an_unknown_model_type(folders: tuple[Path, Path]) -> None:
    rewrite(folders[0] / "config.json", model_type="mine")
    refused(
        *folders, r"model_type 'mine', which the installed transformers does not know.*upgrade transformers"
    )


def small_bert() -> PreTrainedModel:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    )


def small_t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def small_bart() -> PreTrainedModel:
    sizes = {f"{side}_{field}": n for side in ("encoder", "decoder") for field, n in _BART_SIDE.items()}
    return BartForConditionalGeneration(BartConfig(vocab_size=300, d_model=16, **sizes))


_BART_SIDE = {"layers": 1, "ffn_dim": 16, "attention_heads": 2}


def small_classifier() -> PreTrainedModel:
    return LlamaForSequenceClassification(tiny.tiny_config("llama"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (small_bert, r"is a bert \(BertForMaskedLM\): an encoder with bidirectional attention"),
        (
            small_t5,
            r"is a t5 \(T5ForConditionalGeneration\): an encoder-decoder, not a causal language model",
        ),
        (small_bart, r"is a bart \(BartForConditionalGeneration\): an encoder-decoder"),
        (small_classifier, r"is a llama \(LlamaForSequenceClassification\): a model with another head"),
    ],
)
def test_other_kinds_of_models(folders: tuple[Path, Path], tmp_path: Path, make: Any, message: str) -> None:
    other = tiny.save_model(tmp_path / "other", make(), tiny.tiny_tokenizer())
    refused(other, folders[1], r"the base checkpoint .*" + message)


# Tokenizers ------------------------------------------------------------------------------------------------------


def test_tokenizers_that_disagree_are_refused_with_examples(folders: tuple[Path, Path]) -> None:
    swap_tokens(folders[1], (40, 41))
    refused(
        *folders,
        r"tokenizers disagree on 2 of 300 common ids: id 40 is 'C' in base and 'D' in aligned, "
        r"id 41 is 'D' in base and 'C' in aligned. The same id must mean the same token",
    )


def test_at_most_five_examples_are_listed(folders: tuple[Path, Path]) -> None:
    swap_tokens(folders[1], *((i, i + 20) for i in range(40, 50)))
    with pytest.raises(PairError, match=r"disagree on 20 of 300 .*, …\. The same id") as caught:
        ModelPair.load(*folders)
    assert str(caught.value).count(" in base and ") == 5


def test_entirely_different_vocabularies_have_their_own_message(folders: tuple[Path, Path]) -> None:
    swap_tokens(folders[1], *((i, i + 145) for i in range(6, 151)))
    refused(
        *folders,
        r"two tokenizers have different vocabularies: \d+ of 300 .*both models must share one tokenizer",
    )


def test_in_memory_pairs_are_checked_too(folders: tuple[Path, Path]) -> None:
    swap_tokens(folders[1], (40, 41))
    other = AutoTokenizer.from_pretrained(folders[1])
    with pytest.raises(PairError, match=r"disagree on 2 of 300 common ids: id 40 is 'C' in base and 'D' in"):
        ModelPair.from_models(*tiny.tiny_pair_models(), tiny.tiny_tokenizer(), other)


def test_ids_with_two_names_are_masked_where_that_is_asked_for(folders: tuple[Path, Path]) -> None:
    swap_tokens(folders[1], (40, 41))
    refused(*folders, r"mask them: mask_ids='differing', --mask-ids differing")
    pair = ModelPair.load(*folders, mask_ids="differing")
    assert [i for i in range(300) if not pair.vocabulary[i]] == [40, 41]
    assert noted(pair, "2 ordinary ids have two names: id 40 is 'C' in base and 'D' in aligned")
    with pytest.raises(PairError, match=r"mask_ids is 'all'; expected 'differing' or None"):
        ModelPair.load(*folders, mask_ids="all")  # type: ignore[arg-type]


def test_different_vocabularies_are_refused_even_then(folders: tuple[Path, Path]) -> None:
    swap_tokens(folders[1], *((i, i + 145) for i in range(6, 151)))
    with pytest.raises(PairError, match=r"have different vocabularies"):
        ModelPair.load(*folders, mask_ids="differing")


def test_a_broken_tokenizer_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "tokenizer.json").write_text("{}")
    refused(*folders, r"the tokenizer of the base checkpoint .* cannot be loaded")


def test_a_tokenizer_that_shares_nothing_with_the_logits() -> None:
    class Elsewhere:
        chat_template, eos_token_id = "x", 900

        def get_vocab(self) -> dict[str, int]:
            return {"a": 900}

    with pytest.raises(PairError, match=r"no id is known to both models and their tokenizers"):
        ModelPair.from_models(*tiny.tiny_pair_models(), Elsewhere(), Elsewhere())


# Adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    """A LoRA adapter folder over the base."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny.tiny_model(), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_as_a_pickle(folders: tuple[Path, Path], adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(weights, adapter / "adapter_model.bin")
    refused(folders[0], adapter, r"weights as adapter_model.bin only; expected adapter_model.safetensors")


def test_an_adapter_as_the_base(folders: tuple[Path, Path], adapter: Path) -> None:
    refused(adapter, folders[1], r"base checkpoint .* is an adapter; expected full weights.*swap the two")


def test_an_adapter_without_peft(
    folders: tuple[Path, Path], adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eddecode.models.adapters.has_package", lambda name: name != "peft")
    refused(
        folders[0],
        adapter,
        r"is an adapter, which needs the package peft \(pip install 'eddecode\[adapter\]'\)",
    )


def test_an_adapter_of_another_architecture(adapter: Path, tmp_path: Path) -> None:
    base, _ = tiny.save_pair(tmp_path / "gpt2", "gpt2")
    refused(base, adapter, r"the adapter .* \(peft_type LORA\) cannot be merged into .*trained on this base")


def test_an_adapter_that_lacks_weights(folders: tuple[Path, Path], adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    refused(folders[0], adapter, r"cannot be merged .*missing adapter keys")


def test_an_adapter_that_cannot_be_merged(folders: tuple[Path, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(tiny.tiny_model(), config).save_pretrained(tmp_path / "soft")
    refused(
        folders[0], tmp_path / "soft", r"PROMPT_TUNING\) cannot be merged .*for methods that cannot be merged"
    )


# Options ---------------------------------------------------------------------------------------------------------


def test_options_are_checked_before_anything_is_loaded(folders: tuple[Path, Path]) -> None:
    refused(*folders, r"dtype is 'int8'; expected 'auto', 'float32'", dtype="int8")
    refused(*folders, r"dtype is torch.int32", dtype=torch.int32)
    refused(*folders, r"base_revision is 'v2', and .* is a local folder", base_revision="v2")
    refused(*folders, r"device is 'gpu'; expected a torch device such as 'cpu'", device="gpu")
    refused(*folders, r"both device and device_map were given", device="cpu", device_map="auto")
    if not torch.cuda.is_available():
        refused(*folders, r"device is 'cuda' and this torch .* sees no CUDA device", device="cuda")


def test_device_map_without_accelerate(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eddecode.models.load_config.has_package", lambda name: name != "accelerate")
    refused(*folders, r"device_map needs the package accelerate", device_map="auto")
