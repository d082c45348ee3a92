"""A pair as data: how far the weights moved, what was loaded, and digests of content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eddecode import ModelPair
from helpers import tiny
from helpers.pairs import IDS, rewrite, save_adapter

# Describe --------------------------------------------------------------------------------------------------------


def test_relative_movement_against_a_float64_computation() -> None:
    base, aligned = tiny.tiny_pair_models()
    with torch.no_grad():
        for name, tensor in aligned.named_parameters():
            if "layers.0" in name:
                tensor.copy_(dict(base.named_parameters())[name])
    found = ModelPair.from_models(base, aligned).describe(tensors=True)["tensors"]
    a, b = dict(base.named_parameters()), dict(aligned.named_parameters())

    def relative(names: list[str]) -> float:
        difference = torch.cat([(b[n].double() - a[n].double()).flatten() for n in names])
        return float(difference.norm() / torch.cat([a[n].double().flatten() for n in names]).norm())

    assert set(found["identical"]) == {name for name in a if "layers.0." in name}
    assert found["moved"] == pytest.approx({n: relative([n]) for n in a if "layers.0." not in n}, rel=1e-12)
    layers = {layer["layer"]: layer for layer in found["layers"]}
    assert set(layers) == {"model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"}
    assert layers["model.layers.0"]["identical"]
    assert layers["model.layers.0"]["relative_change"] == 0.0
    second = [n for n in a if "layers.1." in n]
    assert layers["model.layers.1"]["relative_change"] == pytest.approx(relative(second), rel=1e-12)
    assert layers["model.layers.1"]["parameters"] == sum(a[n].numel() for n in second)
    assert found["relative_change"] == pytest.approx(relative(list(a)), rel=1e-12)
    assert found["identical_bytes"] == sum(4 * a[n].numel() for n in found["identical"])


def test_chunks_do_not_change_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ModelPair.from_models(*tiny.tiny_pair_models())
    whole, digests = pair.describe(tensors=True)["tensors"], pair.digests()
    monkeypatch.setattr("eddecode.models.tensor_bytes.CHUNK_ELEMENTS", 100)
    chunked = pair.describe(tensors=True)["tensors"]
    assert chunked["moved"] == pytest.approx(whole["moved"], rel=1e-12)
    assert ModelPair.from_models(*pair.models).digests() == digests


def test_negative_zero_differs_from_zero() -> None:
    base = tiny.tiny_model("gpt2")  # its biases are zeros
    aligned = tiny.tiny_aligned(base, amount=0.0)
    aligned.transformer.h[0].ln_1.bias.data.copy_(
        -aligned.transformer.h[0].ln_1.bias
    )  # −0.0 equals 0.0, not to the bit
    found = ModelPair.from_models(base, aligned).describe(tensors=True)["tensors"]
    assert found["moved"] == {"transformer.h.0.ln_1.bias": 0.0}


def test_tensors_of_only_one_model_are_listed() -> None:
    base, aligned = tiny.tiny_model(), tiny.tiny_model(vocab=310, attention_bias=True)
    found = ModelPair.from_models(base, aligned).describe(tensors=True)["tensors"]
    assert found["different_shape"] == ["model.embed_tokens.weight", "lm_head.weight"]
    assert found["only_base"] == []
    assert "model.layers.0.self_attn.q_proj.bias" in found["only_aligned"]


def test_a_tied_head_is_compared_once() -> None:
    models = tiny.tiny_pair_models("gpt2")
    found = ModelPair.from_models(*models).describe(tensors=True)["tensors"]
    assert sum(layer["parameters"] for layer in found["layers"]) == models[0].num_parameters()
    assert "lm_head.weight" not in found["moved"]


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_cache_bytes_per_token_are_those_of_a_real_cache(arch: str) -> None:
    pair = ModelPair.from_models(*tiny.tiny_pair_models(arch))
    with torch.no_grad():
        cache = pair.base(IDS[:, :4], use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    described = pair.describe()["base"]
    assert described["kv_bytes_per_token"] == held / 4
    assert described["weights_bytes"] >= 4 * described["parameters"]


def test_describe_is_json_about_what_was_loaded(pair_folders: tuple[Path, Path]) -> None:
    found = json.loads(json.dumps(ModelPair.load(*pair_folders, dtype="bfloat16").describe(tensors=True)))
    base = found["base"]
    assert base["source"] == str(pair_folders[0])
    assert (base["architecture"], base["model_type"]) == ("LlamaForCausalLM", "llama")
    assert base["dtypes"] == {"bfloat16": base["parameters"]}
    assert base["tokenizer"]["size"] == base["logit_width"] == 300
    assert (base["tokenizer"]["chat_template"], found["aligned"]["tokenizer"]["chat_template"]) == (
        False,
        True,
    )
    assert found["vocabulary"] == {"width": 300, "sampleable": 300, "masked": 0}
    assert base["eos_ids"] == [tiny.EOS]
    assert found["notes"] == []


# Leading layers in common ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "frozen", "layers"),
    [
        ("llama", ("embed_tokens", "layers.0."), 1),
        ("llama", ("embed_tokens", "layers."), 2),
        ("gpt2", ("wte", "wpe", "h.0."), 1),
        ("gpt2", ("wte", "h.0."), 0),
        ("llama", ("embed_tokens", "layers.1."), 0),
        ("llama", ("layers.0.",), 0),
    ],
)
def test_identical_leading_layers_are_counted(arch: str, frozen: tuple[str, ...], layers: int) -> None:
    base, aligned = tiny.tiny_pair_models(arch)
    own = dict(base.named_parameters())
    same = {name for name in own if any(part in name for part in frozen)}
    with torch.no_grad():
        for name, tensor in aligned.named_parameters():
            if name in same:
                tensor.copy_(own[name])
    found = ModelPair.from_models(base, aligned).describe(tensors=True)["tensors"]["trunk"]
    if not layers:
        assert found is None
        return
    assert (found["layers"], found["of"]) == (layers, 2)
    assert found["parameters"] == sum(own[name].numel() for name in same)
    assert found["share"] == found["parameters"] / base.num_parameters()
    embeddings = sum(own[name].nbytes for name in same if ".h." not in name and ".layers." not in name)
    assert found["layer_bytes"] == sum(own[name].nbytes for name in same) - embeddings


# Digests ---------------------------------------------------------------------------------------------------------


def test_digests_follow_content_not_sharding_names_or_dtype(tmp_path: Path) -> None:
    one = tiny.save_pair(tmp_path / "one")
    many = tiny.save_pair(tmp_path / "many", shard="20KB")
    digests = ModelPair.load(*one).digests()
    assert digests == ModelPair.load(*many, dtype="bfloat16").digests()
    assert len(set(digests)) == 2
    assert all(len(digest) == 32 for digest in digests)


def test_digests_change_with_one_weight_or_one_setting(tmp_path: Path) -> None:
    folders = tiny.save_pair(tmp_path)
    before = ModelPair.load(*folders).digests()
    rewrite(folders[0] / "config.json", rms_norm_eps=1e-3)
    raw = bytearray((folders[1] / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folders[1] / "model.safetensors").write_bytes(raw)
    after = ModelPair.load(*folders).digests()
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_digests_of_an_adapter_include_its_base(tmp_path: Path) -> None:
    first, second = tiny.save_pair(tmp_path)
    save_adapter(first, tmp_path / "adapter")
    assert (
        ModelPair.load(first, tmp_path / "adapter").digests()[1]
        != ModelPair.load(second, tmp_path / "adapter").digests()[1]
    )
    before = ModelPair.load(first, tmp_path / "adapter").digests()
    rewrite(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="moved/elsewhere")
    assert ModelPair.load(first, tmp_path / "adapter").digests() == before
    rewrite(tmp_path / "adapter" / "adapter_config.json", lora_alpha=16)
    assert ModelPair.load(first, tmp_path / "adapter").digests()[1] != before[1]


def test_digests_of_models_in_memory_are_by_content() -> None:
    base, aligned = tiny.tiny_pair_models()
    digests = ModelPair.from_models(base, aligned).digests()
    assert ModelPair.from_models(*tiny.tiny_pair_models()).digests() == digests
    with torch.no_grad():
        aligned.lm_head.weight[0, 0] += 1
    changed = ModelPair.from_models(base, aligned).digests()
    assert (changed[0] == digests[0], changed[1] == digests[1]) == (True, False)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("no prompt here", ["warning", "leaves out the text of message 0"]),
        ("{{ messages[0].content[:20] }}", ["warning", "cuts or changes the text of message 0"]),
        ("{{ messages[-1].content }}", ["info", "takes no system message"]),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", []),
        (
            "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
            ["warning", "reads bos_token, and the tokenizer has none: nothing is written there"],
        ),
    ],
)
def test_a_chat_template_is_tried_when_a_pair_is_made(template: str, expected: list[str]) -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template, tokenizer.bos_token = template, None
    pair = ModelPair.from_models(*tiny.tiny_pair_models(), tiny.tiny_tokenizer(), tokenizer)
    notes = [note for note in pair.notes if note.component == "aligned"]
    assert [note.level for note in notes] == expected[:1]
    assert all(expected[1] in note.message for note in notes)
