"""Memory: estimated before loading; a pair that does not fit is refused with alternatives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig

from eddecode import ModelPair, Sampler
from eddecode.engine import scheduler
from eddecode.errors import PairError
from eddecode.execution import runner as decoder
from eddecode.models import memory_estimate as room
from eddecode.models.ensemble import Ensemble
from eddecode.models.load_config import LoadConfig
from eddecode.models.memory_estimate import check_fits, estimate
from helpers import tiny

GIB = 1 << 30


# Memory that is needed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [
        *((arch, dtype) for arch in tiny.ARCHITECTURES for dtype in ("auto", "bfloat16")),
        ("llama", "float32"),
        ("qwen2_moe", "float32"),
    ],
)
def test_weights_are_those_of_the_loaded_models(tmp_path: Path, arch: str, dtype: str) -> None:
    folders = tiny.save_pair(tmp_path, arch, dtype=torch.float16, shard="20KB" if dtype == "auto" else None)
    found = estimate(*folders, dtype=dtype)
    pair = ModelPair.load(*folders, dtype=dtype)
    for cost, model in zip(found.models, pair.models, strict=True):
        assert cost.weights == sum(parameter.nbytes for parameter in model.parameters())
        assert cost.parameters == model.num_parameters()


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_cache_bytes_per_token_are_those_of_the_slots(tmp_path: Path, arch: str) -> None:
    """Sliding windows count in full, since the slots keep every position."""
    folders = tiny.save_pair(tmp_path, arch)
    runner = Sampler(ModelPair.load(*folders)).runner
    for model, cost in enumerate(estimate(*folders).models):
        prefix = runner.prefill(model, [tuple(range(20, 20 + 3 * tiny.WINDOW))])[0]
        assert cost.cache_per_token == prefix.nbytes / prefix.length


def test_cache_bytes_of_latent_attention_are_those_of_a_real_cache() -> None:
    config = DeepseekV3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4,
        v_head_dim=6, first_k_dense_replace=2,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).eval()
    with torch.no_grad():
        cache = model(torch.tensor([[1, 2, 3, 4]]), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert room.cache_bytes_per_token(config, torch.float32) == held / 4


def test_an_adapter_counts_as_a_merged_copy(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, _ = tiny.save_pair(tmp_path)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(tiny.tiny_model(), config)
    adapted.save_pretrained(tmp_path / "adapter")
    ours, theirs = estimate(base, tmp_path / "adapter").models
    assert theirs.weights - ours.weights == sum(
        p.nbytes for name, p in adapted.named_parameters() if "lora_" in name
    )


def llama_7b(folder: Path, layers: int = 32) -> Path:
    """A checkpoint of Llama-2-7B's shape in bfloat16 as a sparse file: headers without weights."""
    config = LlamaConfig(num_hidden_layers=layers, dtype="bfloat16")  # the defaults are this model's
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        names = {
            name: list(p.shape)
            for name, p in tiny.AutoModelForCausalLM.from_config(config).named_parameters()
        }
    header, at = {}, 0
    for name, shape in names.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * math.prod(shape)]}
        at += 2 * math.prod(shape)
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + at)
    return folder


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with all of its layers; read it, do not write to it."""
    return llama_7b(tmp_path_factory.mktemp("models") / "7b")


def test_a_7b_pair_by_hand_without_its_weights(seven: Path) -> None:
    folder = seven
    found = estimate(folder, folder, slots=8, length=1000)
    assert found.models[0].parameters == 6_738_415_616  # the number that its authors give, 6.7B
    assert found.weights == 2 * 2 * 6_738_415_616
    assert found.models[0].cache_per_token == 2 * 32 * 4096 * 2  # keys and values, layers, width, bytes
    assert found.cache == 8 * 1024 * 2 * 524_288  # positions in steps of 64, both models
    assert found.total == found.weights + found.cache + found.activations
    assert 0.1 * GIB < found.activations < 16 * GIB
    assert estimate(folder, folder, dtype="float32").weights == 2 * found.weights
    linear = 6_738_415_616 - 2 * 32_000 * 4096 - 65 * 4096  # without embeddings, head and norms
    rest = 2 * (6_738_415_616 - linear)
    assert estimate(folder, quantization="4bit").weights == linear * 9 / 16 + rest
    assert estimate(folder, quantization="8bit").weights == pytest.approx(linear + rest, rel=1e-3)
    assert json.loads(json.dumps(found.describe()))["total"] == found.total


def test_more_of_anything_needs_more(tmp_path: Path) -> None:
    folders = tiny.save_pair(tmp_path)
    sizes = [
        estimate(*folders, slots=slots, length=length).total for slots, length in ((1, 64), (8, 64), (8, 256))
    ]
    assert sizes == sorted(set(sizes))
    assert estimate(*folders, slots=8, length=256).weights == estimate(*folders).weights


def test_the_engine_has_the_limits_that_the_estimate_assumes() -> None:
    assert scheduler.PREFILL_TOKENS == room.PREFILL_TOKENS
    assert decoder.PREFILL_CHUNK == room.PREFILL_CHUNK


# Memory that is free ---------------------------------------------------------------------------------------------


def test_a_pair_that_does_not_fit_is_refused_before_loading(
    seven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = seven
    monkeypatch.setattr(room, "free_bytes", lambda device: 20 * GIB)
    monkeypatch.setattr("eddecode.models.load_group.load_model", pytest.fail)
    with pytest.raises(PairError) as caught:
        ModelPair.load(folder, folder)
    message = str(caught.value)
    assert "base and aligned would need 2" in message
    assert "GiB on cpu (25.1 GiB of weights, 2.0 GiB of keys and values for 1 × 2048 tokens" in message
    assert "and 20.0 GiB are free there" in message
    assert "device_map='auto' with offload_folder=" in message
    assert "bfloat16" not in message  # it is that already
    assert message.endswith("check_memory=False skips this check")


def fits(monkeypatch: pytest.MonkeyPatch, folder: Path, free: int, **load_config: Any) -> Callable[..., None]:
    """check_fits of a pair on a CUDA device with that much memory, beside a CPU with the same."""
    devices = (torch.device("cuda", 0), torch.device("cpu"))
    monkeypatch.setattr(room, "free_bytes", lambda device: free)
    monkeypatch.setattr(room, "all_devices", lambda: devices)
    checkpoint = room.open_checkpoint(folder, "base")
    load_configs = [LoadConfig(**{"device": devices[0], **load_config})] * 2

    def check(slots: int = 1, length: int = 2048) -> None:
        check_fits([checkpoint] * 2, [None] * 2, load_configs, slots, length)

    return check


def test_only_alternatives_that_fit_are_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = llama_7b(tmp_path / "7b", layers=8)
    needs = lambda **changes: estimate(folder, folder, **changes).total  # noqa: E731
    with pytest.raises(PairError, match=r"dtype='bfloat16' \(\d+\.\d GiB\); quantization='8bit'") as caught:
        fits(monkeypatch, folder, needs(), dtype=torch.float32)()
    assert "4bit" in str(caught.value)
    with pytest.raises(PairError, match=r"What would fit: .*quantization='8bit'.*'4bit'") as caught:
        fits(monkeypatch, folder, needs() - 1)()
    assert "device_map='auto' (" in str(caught.value)
    with pytest.raises(PairError, match=r"quantization='4bit'") as caught:
        fits(monkeypatch, folder, needs(quantization="8bit") - 1)()
    assert "8bit" not in str(caught.value)
    fits(monkeypatch, folder, needs())()  # exactly enough
    fits(monkeypatch, folder, needs() // 2 + 1, device_map="auto")()  # both devices together
    fits(monkeypatch, folder, 1, device_map={"": "disk"})()
    fits(monkeypatch, folder, 1, device_map="auto", offload_folder=tmp_path)()


def test_the_suggested_number_of_slots_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = llama_7b(tmp_path / "7b", layers=2)
    free = estimate(folder, folder, slots=13, length=512).total
    with pytest.raises(
        PairError, match=r"at most 13 completions at a time \(slots=13, Sampler\(max_slots=13\)\)"
    ):
        fits(monkeypatch, folder, free)(slots=64, length=512)
    free = estimate(folder, folder, slots=1, length=700).total
    with pytest.raises(PairError, match=r"texts of at most 512 tokens"):
        fits(monkeypatch, folder, free)(slots=1, length=2048)


def test_each_device_is_checked_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = tiny.save_pair(tmp_path)
    checkpoints = [
        room.open_checkpoint(folder, side) for folder, side in zip(folders, ("base", "aligned"), strict=True)
    ]
    load_configs = [LoadConfig(device_map="cuda:0"), LoadConfig(device_map={"": 1})]
    monkeypatch.setattr(room, "free_bytes", lambda device: GIB if device.index == 0 else 100_000)
    with pytest.raises(PairError, match=r"^aligned would need .* on cuda:1 "):
        check_fits(checkpoints, [None, None], load_configs, 1, 64)


def test_the_check_accepts_what_fits_and_can_be_turned_off(
    pair_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = estimate(*pair_folders, dtype="float32", slots=4, length=100)
    monkeypatch.setattr(room, "free_bytes", lambda device: needed.total)
    ModelPair.load(*pair_folders, dtype="float32", slots=4, length=100)
    monkeypatch.setattr(room, "free_bytes", lambda device: needed.total - 1)
    with pytest.raises(PairError, match=r"for 4 × 100 tokens"):
        ModelPair.load(*pair_folders, dtype="float32", slots=4, length=100)
    ModelPair.load(*pair_folders, dtype="float32", slots=4, length=100, check_memory=False)
    with pytest.raises(PairError, match=r"slots is 0; expected at least 1"):
        ModelPair.load(*pair_folders, slots=0)


def test_all_models_of_a_group_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, aligned = tiny.save_pair(tmp_path)
    monkeypatch.setattr(room, "free_bytes", lambda device: estimate(base, aligned, length=256).total)
    ModelPair.load(base, aligned)
    with pytest.raises(PairError, match=r"base and aligned 1 and aligned 2 would need"):
        Ensemble.load(base, [aligned, aligned])
