"""LoadConfig: device maps, offloading and quantization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from eddecode import ModelPair, Sampler, SamplingParams
from eddecode.errors import PairError
from eddecode.models.load_config import quantization_config
from helpers import decoding, tiny

# Device maps -----------------------------------------------------------------------------------------------------

PARTS = (
    "model.embed_tokens",
    "model.layers.0",
    "model.layers.1",
    "model.norm",
    "model.rotary_emb",
    "lm_head",
)
MAPS: dict[str, Any] = {
    "auto": "auto",
    "all on disk": {"": "disk"},
    "a layer on disk": dict.fromkeys(PARTS, "cpu") | {"model.layers.1": "disk"},
    "embedding and head on disk": dict.fromkeys(PARTS, "cpu")
    | {"model.embed_tokens": "disk", "lm_head": "disk"},
    "one model each": {"base": "cpu", "aligned": {"": "disk"}},
}


@pytest.mark.parametrize(
    ("arch", "device_map"),
    [
        *(("llama", device_map) for device_map in MAPS.values()),
        ("gemma2", {"": "disk"}),
        ("qwen2_moe", {"": "disk"}),
    ],
    ids=[*MAPS, "gemma2", "qwen2_moe"],
)
def test_a_pair_on_a_device_map_decodes_as_on_one_device(tmp_path: Path, arch: str, device_map: Any) -> None:
    pytest.importorskip("accelerate")
    folders = tiny.save_pair(tmp_path, arch)
    spread = ModelPair.load(*folders, device_map=device_map, offload_folder=tmp_path / "offload")
    params, prompts = SamplingParams(alpha=0.7, max_new_tokens=6), decoding.mixed_prompts(4)
    whole = ModelPair.load(*folders)
    plain = Sampler(whole).generate(prompts, params)
    assert decoding.tokens(Sampler(spread).generate(prompts, params)) == decoding.tokens(plain)
    offloaded = device_map != "auto"
    assert ("meta" in spread.describe()["aligned"]["devices"]) == offloaded
    assert spread.digests() == whole.digests()


def test_models_offloaded_by_accelerate_decode_as_before(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    params, prompts = SamplingParams(alpha=0.7, max_new_tokens=6), decoding.mixed_prompts(4)
    plain = decoding.tokens(decoding.sampler().generate(prompts, params))
    base, aligned = tiny.tiny_pair_models()
    cpu = torch.device("cpu")
    pair = ModelPair.from_models(
        accelerate.cpu_offload(base, execution_device=cpu),
        accelerate.disk_offload(aligned, tmp_path, execution_device=cpu),
    )
    assert decoding.tokens(Sampler(pair).generate(prompts, params)) == plain
    assert pair.device == cpu
    assert pair.describe()["memory"]["shared_bytes"] == 0
    with pytest.raises(PairError, match=r"has weights that are offloaded, so its content cannot be"):
        pair.digests()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the devices are there")
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("cuda:0", r"sees 0 CUDA devices"),
        (1, r"the place 1 .* sees 0 CUDA devices"),
        ("meta", r"holds no weights"),
        ("nowhere", r"expected a torch device"),
        ([], r"expected a torch device"),
    ],
)
def test_a_place_that_is_not_there_is_refused(
    place: object, message: str, pair_folders: tuple[Path, Path]
) -> None:
    for device_map in ({"base": place, "aligned": "cpu"}, {"base": "cpu", "aligned": {"": place}}):
        with pytest.raises(PairError, match=message):
            ModelPair.load(*pair_folders, device_map=device_map)


def test_a_device_map_for_only_one_model_is_refused(pair_folders: tuple[Path, Path]) -> None:
    pytest.importorskip("accelerate")
    with pytest.raises(PairError, match=r"device_map has the keys \['base'\]; .* every one of base, aligned"):
        ModelPair.load(*pair_folders, device_map={"base": "cpu"})


# Quantization ----------------------------------------------------------------------------------------------------


@pytest.fixture
def with_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the library is installed."""
    # Not importlib's own: other packages would take it for installed too, and remember.
    monkeypatch.setattr("eddecode.models.load_config.has_package", lambda name: True)


def test_quantization_names_the_missing_library(
    pair_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eddecode.models.load_config.has_package", lambda name: name != "bitsandbytes")
    with pytest.raises(
        PairError, match=r"'4bit' needs the package bitsandbytes \(pip install bitsandbytes\); or"
    ):
        ModelPair.load(*pair_folders, quantization="4bit")
    with pytest.raises(PairError, match=r"quantization is '3bit'; expected '8bit', '4bit', or None"):
        ModelPair.load(*pair_folders, quantization="3bit")


def test_the_configuration_of_bitsandbytes() -> None:
    four, eight = quantization_config("4bit", "auto"), quantization_config("8bit", torch.float16)
    assert (four.load_in_4bit, four.load_in_8bit, four.bnb_4bit_quant_type) == (True, False, "nf4")
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization_config("4bit", torch.float16).bnb_4bit_compute_dtype == torch.float16
    assert (eight.load_in_4bit, eight.load_in_8bit) == (False, True)


@pytest.mark.usefixtures("with_bitsandbytes")
def test_the_loader_is_given_the_quantization(
    pair_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    real = AutoModelForCausalLM.from_pretrained

    def loader(path: Path, **arguments: Any) -> Any:
        asked.append(arguments)
        return real(path), {}

    monkeypatch.setattr("eddecode.models.loader.AutoModelForCausalLM.from_pretrained", loader)
    pair = ModelPair.load(*pair_folders, quantization="4bit", device="cpu")
    assert [arguments["quantization_config"].load_in_4bit for arguments in asked] == [True, True]
    assert asked[0]["device_map"] == {"": torch.device("cpu")}
    assert any("rounded to 4 bits" in note.message and "1 + 2α" in note.hint for note in pair.notes)


@pytest.mark.usefixtures("with_bitsandbytes")
def test_an_adapter_is_not_merged_into_quantized_weights(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, _ = tiny.save_pair(tmp_path)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny.tiny_model(), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        PairError, match=r"cannot be merged into weights of 8bit: the sum would be rounded a second time"
    ):
        ModelPair.load(base, tmp_path / "adapter", quantization="8bit")
