"""ModelPair: what it loads, what it holds, what it notes and describes. Damage and refusals: test_pair_refusals.py."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from eddecode import ModelPair, RenderedPrompt
from eddecode.errors import PairError, PromptError

IDS = torch.arange(10, 30)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def noted(pair: ModelPair, text: str) -> bool:
    return any(text in str(note) for note in pair.notes)


# Loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
@pytest.mark.parametrize("shard", [None, "20KB"])
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
    assert pair.notes == []
    assert pair.names == ("base", "aligned")
    assert pair.weights(0.3) == (1.3, -0.3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16, "bf16"])
def test_dtype_is_what_was_asked_for(pair_folders: tuple[Path, Path], dtype: str | torch.dtype) -> None:
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


def test_a_flash_attention_wish_in_the_config_is_not_followed(tmp_path: Path) -> None:
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

    def resident(field: str) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    pair = ModelPair.load(folder, shutil.copytree(folder, tmp_path / "copy"))
    assert all(bool(torch.isfinite(logits(m)).all()) for m in pair.models)  # every page is touched
    assert resident("VmHWM") - before < 1.4 * weights


def rewrite(path: Path, drop: tuple[str, ...] = (), **fields: Any) -> None:
    """Change fields of a JSON file."""
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in drop}))


# From the hub ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_a_hub_id_fetches_the_files_that_are_read_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str | None
) -> None:
    """A hub stood in for by a folder: what is asked for is copied, by the patterns and the revision given."""
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


def test_an_adapter_moves_only_what_it_targets(pair_folders: tuple[Path, Path], tmp_path: Path) -> None:
    save_adapter(pair_folders[0], tmp_path)
    moved = ModelPair.load(pair_folders[0], tmp_path).describe(tensors=True)["tensors"]["moved"]
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "up_proj"}


def test_an_adapter_of_another_base_is_noted(pair_folders: tuple[Path, Path], tmp_path: Path) -> None:
    save_adapter(pair_folders[0], tmp_path)
    rewrite(tmp_path / "adapter_config.json", base_model_name_or_path="someone/else")
    assert noted(ModelPair.load(pair_folders[0], tmp_path), "trained on 'someone/else' and is merged into")


def test_an_adapter_with_added_tokens_widens_the_copy(tmp_path: Path) -> None:
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


# Vocabularies and notes ------------------------------------------------------------------------------------------


def test_padding_and_added_tokens_are_masked_and_noted() -> None:
    base, aligned = tiny.tiny_pair_models(vocab=320)
    pair = ModelPair.from_models(
        base, aligned, tiny.tiny_tokenizer(), tiny.tiny_tokenizer(extra=("<|tool|>",))
    )
    assert pair.vocabulary.dtype == torch.bool
    assert pair.vocabulary.tolist() == [True] * 300 + [False] * 20
    assert noted(pair, "base: 20 of 320 logits belong to no token")
    assert noted(pair, "aligned: 19 of 320 logits belong to no token")
    assert noted(pair, "1 tokens are known to the aligned tokenizer alone: 300 ('<|tool|>')")


def test_the_narrower_model_bounds_the_vocabulary() -> None:
    pair = ModelPair.from_models(
        tiny.tiny_model(vocab=300), tiny.tiny_model(vocab=310), *[tiny.tiny_tokenizer()] * 2
    )
    assert pair.vocabulary.shape == (300,)
    assert noted(pair, "300 ids wide in base and 310 in aligned")


def test_ids_without_a_token_are_holes() -> None:
    class Holed:
        """A tokenizer that has lost one id."""

        chat_template, eos_token_id, bos_token, eos_token = "x", 2, "<s>", "</s>"

        def get_vocab(self) -> dict[str, int]:
            return {f"t{i}": i for i in range(300) if i != 17}

        def __len__(self) -> int:
            return 300

    pair = ModelPair.from_models(*tiny.tiny_pair_models(), Holed(), Holed())
    assert [i for i, known in enumerate(pair.vocabulary.tolist()) if not known] == [17]


def test_a_renamed_reserved_token_is_masked_not_refused() -> None:
    models = tiny.tiny_pair_models(vocab=301)
    pair = ModelPair.from_models(
        *models,
        tiny.tiny_tokenizer(extra=("<|reserved_special_token_0|>",)),
        tiny.tiny_tokenizer(extra=("<|tool|>",)),
    )
    assert not pair.vocabulary[300]
    assert pair.vocabulary[:300].all()
    assert noted(
        pair, "1 reserved ids have two names: id 300 is '<|reserved_special_token_0|>' in base and '<|tool|>'"
    )


def test_a_tokenizer_beyond_the_logits_is_noted() -> None:
    pair = ModelPair.from_models(*tiny.tiny_pair_models(vocab=290), *[tiny.tiny_tokenizer()] * 2)
    assert pair.vocabulary.shape == (290,)
    assert noted(pair, "the tokenizer knows 10 ids that the model has no row for, such as 290")


def test_without_any_tokenizer_every_id_counts(tmp_path: Path) -> None:
    models = tiny.tiny_pair_models(vocab=40)
    folders = [
        tiny.save_model(tmp_path / name, m) for name, m in zip(("base", "aligned"), models, strict=True)
    ]
    pair = ModelPair.load(*folders)
    assert pair.vocabulary.tolist() == [True] * 40
    assert (pair.tokenizer, pair.base_tokenizer, pair.aligned_tokenizer) == (None, None, None)
    assert noted(pair, "neither checkpoint has a tokenizer. Only RenderedPrompt works")
    assert json.dumps(pair.describe())


@pytest.mark.parametrize("side", ["base", "aligned"])
def test_one_tokenizer_serves_both_with_a_note(side: str) -> None:
    tokenizer = tiny.tiny_tokenizer()
    pair = ModelPair.from_models(*tiny.tiny_pair_models(), **{f"{side}_tokenizer": tokenizer})
    assert pair.base_tokenizer is pair.aligned_tokenizer is pair.tokenizer is tokenizer
    other = {"base": "aligned", "aligned": "base"}[side]
    assert noted(pair, f"{other}: has no tokenizer; the {side} model's is used for both")


def test_a_missing_chat_template_is_noted_for_the_aligned_side_alone() -> None:
    models, chat, plain = tiny.tiny_pair_models(), tiny.tiny_tokenizer(), tiny.tiny_tokenizer(chat=False)
    assert noted(ModelPair.from_models(*models, chat, plain), "has no chat template. Give the prompt format")
    assert not noted(ModelPair.from_models(*models, plain, chat), "chat template")


def test_context_windows_are_noted_where_they_differ() -> None:
    base, aligned = tiny.tiny_model(), tiny.tiny_model(max_position_embeddings=128)
    pair = ModelPair.from_models(base, aligned, *[tiny.tiny_tokenizer()] * 2)
    assert pair.context_windows == (256, 128)
    assert noted(pair, "base has 256 positions, aligned 128")


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_every_architecture_tells_its_context_window(arch: str) -> None:
    assert ModelPair.from_models(*tiny.tiny_pair_models(arch)).context_windows == (256, 256)


def test_a_prompt_beyond_the_embedding_is_refused() -> None:
    pair = ModelPair.from_models(tiny.tiny_model(vocab=310), tiny.tiny_model(vocab=300))
    pair.check_prompt(RenderedPrompt([309], [299]))
    with pytest.raises(
        PromptError,
        match=r"^id 300 is beyond the 300 embeddings of the aligned model; render the prompt with",
    ):
        pair.check_prompt(RenderedPrompt([309], [1, 300]))


# End of sequence -------------------------------------------------------------------------------------------------


def test_eos_ids_come_from_generation_config_then_config_then_tokenizer() -> None:
    base, aligned = tiny.tiny_pair_models()
    base.generation_config.eos_token_id = [2, 4]
    aligned.generation_config.eos_token_id = None
    aligned.config.eos_token_id = 5
    pair = ModelPair.from_models(base, aligned, *[tiny.tiny_tokenizer()] * 2)
    assert pair.eos_ids == (frozenset({2, 4}), frozenset({5}))
    assert noted(pair, "base ends at 2 ('</s>'), 4 ('<|assistant|>'), aligned at 5 ('<|system|>')")
    aligned.config.eos_token_id = None
    assert ModelPair.from_models(base, aligned, *[tiny.tiny_tokenizer()] * 2).eos_ids[1] == {2}
    assert all(bool(pair.vocabulary[i]) for ids in pair.eos_ids for i in ids)


def test_a_list_of_eos_ids_on_disk_is_read(tmp_path: Path) -> None:
    folders = tiny.save_pair(tmp_path)
    rewrite(folders[1] / "generation_config.json", eos_token_id=[2, 3])
    pair = ModelPair.load(*folders)
    assert pair.eos_ids == (frozenset({2}), frozenset({2, 3}))


def test_an_eos_that_one_model_does_not_know_is_noted() -> None:
    base, aligned = tiny.tiny_model(vocab=300), tiny.tiny_model(vocab=301)
    aligned.generation_config.eos_token_id = 300
    pair = ModelPair.from_models(
        base, aligned, tiny.tiny_tokenizer(), tiny.tiny_tokenizer(extra=("<|end|>",))
    )
    assert noted(pair, "aligned: its end-of-sequence ids 300 ('<|end|>') are not known to both models")


def test_no_eos_at_all_is_noted() -> None:
    models = tiny.tiny_pair_models(vocab=40)
    for model in models:
        model.generation_config.eos_token_id = model.config.eos_token_id = None
    pair = ModelPair.from_models(*models)
    assert pair.eos_ids == (frozenset(), frozenset())
    assert noted(pair, "no end-of-sequence id")


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
    monkeypatch.setattr("eddecode.compare._CHUNK", 100)
    chunked = pair.describe(tensors=True)["tensors"]
    assert chunked["moved"] == pytest.approx(whole["moved"], rel=1e-12)
    assert ModelPair.from_models(*pair.models).digests() == digests


def test_bitwise_means_bits() -> None:
    base = tiny.tiny_model("gpt2")  # its biases are zeros
    aligned = tiny.tiny_aligned(base, amount=0.0)
    aligned.transformer.h[0].ln_1.bias.data.copy_(
        -aligned.transformer.h[0].ln_1.bias
    )  # −0.0 equals 0.0, not to the bit
    found = ModelPair.from_models(base, aligned).describe(tensors=True)["tensors"]
    assert found["moved"] == {"transformer.h.0.ln_1.bias": 0.0}


def test_tensors_that_have_no_partner_are_listed() -> None:
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


def test_describe_is_json_and_says_what_was_loaded(pair_folders: tuple[Path, Path]) -> None:
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


# In memory -------------------------------------------------------------------------------------------------------


def test_from_models_wants_causal_language_models() -> None:
    model = tiny.tiny_model()
    with pytest.raises(
        PairError, match=r"the aligned model is a LlamaModel; expected a transformers causal language"
    ):
        ModelPair.from_models(model, model.model)
    with pytest.raises(PairError, match=r"the base model is a Linear"):
        ModelPair.from_models(torch.nn.Linear(1, 1), model)


def test_from_models_freezes_what_it_is_given() -> None:
    models = [model.train().requires_grad_(True) for model in tiny.tiny_pair_models()]
    pair = ModelPair.from_models(*models)
    assert not any(model.training or p.requires_grad for model in pair.models for p in model.parameters())
    assert "LlamaForCausalLM" in repr(pair)


def test_soft_capped_scores_are_not_left_to_an_attention_that_ignores_them(tmp_path: Path) -> None:
    folders = tiny.save_pair(tmp_path, "gemma2")
    in_memory = tiny.tiny_pair_models("gemma2")
    for model in in_memory:
        model.config._attn_implementation = "sdpa"
    for pair in (ModelPair.load(*folders, dtype="float32"), ModelPair.from_models(*in_memory)):
        assert {model.config._attn_implementation for model in pair.models} == {"eager"}
