"""What is loaded is what the files hold: leftover files, dtypes, quantized checkpoints, and what `describe` says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eddecode import ModelPair
from eddecode.errors import PairError
from eddecode.models import stored_elements
from eddecode.models.checkpoint import open_checkpoint
from eddecode.models.loaded_weights import compare_with_files
from eddecode.models.memory_estimate import estimate
from eddecode.models.safetensors_header import read_header
from eddecode.models.task_vector import merge_task_vector
from eddecode.models.weight_dtypes import check_dtypes
from helpers import tiny

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folders(pair_folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    return tuple(Path(shutil.copytree(f, tmp_path / f.name)) for f in pair_folders)  # type: ignore[return-value]


def rewrite_weights(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def relabel(folder: Path, dtype: str, names: Callable[[str], bool] = lambda name: True) -> None:
    """Give tensors another dtype of the same size in the header; the bytes stay."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__" and names(name):
            entry["dtype"] = dtype
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def messages(pair: ModelPair) -> str:
    return "\n".join(map(str, pair.notes))


# Files beside the weights ----------------------------------------------------------------------------------------


def test_an_adapter_left_beside_full_weights_is_not_applied(folders: tuple[Path, Path]) -> None:
    peft = pytest.importorskip("peft")
    adapter = peft.get_peft_model(tiny.tiny_model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained(folders[1])
    own = load_file(folders[1] / "model.safetensors")
    pair = ModelPair.load(*folders)
    assert all(torch.equal(own[name], tensor) for name, tensor in pair.aligned.state_dict().items())
    assert "adapter_config.json lies beside full weights and is not used" in messages(pair)
    assert pair.describe()["aligned"]["source"] == str(folders[1])


# Dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved", "label", "some", "message"),
    [
        (torch.float32, "I32", "mlp", r"holds I32 in the files, and the model has float32 there"),
        (torch.bfloat16, "F16", "", r"labels its tensors as float16, .* probably written as bfloat16"),
        (torch.float16, "BF16", "", r"labels its tensors as bfloat16, .* probably written as float16"),
        (
            torch.bfloat16,
            "F16",
            "layers.0.input_layernorm",
            r"1 tensors in float16 and 20 in bfloat16; expected one",
        ),
    ],
)
def test_relabelled_tensors(tmp_path: Path, saved: torch.dtype, label: str, some: str, message: str) -> None:
    base, aligned = tiny.save_pair(tmp_path, dtype=saved)
    ModelPair.load(base, aligned)  # as they were saved they are fine
    relabel(aligned, label, lambda name: some in name)
    with pytest.raises(PairError, match=message):
        ModelPair.load(base, aligned)


def test_a_header_is_read_once_for_all_matrices_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, aligned = tiny.save_pair(tmp_path, dtype=torch.bfloat16, shard="20KB")
    checkpoint = open_checkpoint(aligned, "aligned")
    read = list[Path]()
    monkeypatch.setattr(
        stored_elements, "read_header", lambda path: (read.append(path), read_header(path))[1]
    )
    check_dtypes(checkpoint)
    assert 1 < len(read) <= len(checkpoint.files) < len(checkpoint.tensors())


def test_weights_that_auto_rounds_are_noted(folders: tuple[Path, Path]) -> None:
    config = folders[1] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    noted = messages(ModelPair.load(*folders))
    assert "rounded as they are loaded, to the dtype in config.json (21 tensors float32 → bfloat16)" in noted
    assert "rounded as they" not in messages(ModelPair.load(*folders, dtype="bfloat16"))  # asked for


# Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch", ["llama", "gpt2", "mixtral", "qwen2_moe"]
)  # plain, transposed, joined experts
def test_every_tensor_is_found_under_its_name_in_the_files(tmp_path: Path, arch: str) -> None:
    pair = ModelPair.load(*tiny.save_pair(tmp_path, arch, shard="20KB"))
    for side in ("base", "aligned"):
        files = pair.describe()[side]["files"]
        assert files["complete"] + files["sampled"] == files["tensors"] > 20
        assert (files["unused"], files["rounded"]) == (0, {})


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"]
)
def test_a_value_that_differs_from_the_file(pair_folders: tuple[Path, Path], name: str) -> None:
    pair = ModelPair.load(*pair_folders)
    assert pair.checkpoints is not None
    tensor = pair.base.state_dict()[name]
    tensor.view(-1)[-1] += 1  # the last element is in every sample
    try:
        with pytest.raises(
            PairError, match=rf"the tensor {name} has other values in memory than in the files"
        ):
            compare_with_files(pair.base, pair.checkpoints[0])
    finally:
        tensor.view(-1)[-1] -= 1


def test_the_difference_of_the_configurations(tmp_path: Path) -> None:
    base, aligned = tiny.save_pair(tmp_path)
    config = aligned / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-5}))
    assert ModelPair.load(base, aligned).describe()["config_difference"] == {"rms_norm_eps": [1e-6, 1e-5]}


# Quantized checkpoints -------------------------------------------------------------------------------------------


def quantize(folder: Path, block: int = 32) -> Tensors:
    """Round a checkpoint's linear layers to float8 with a scale per block; the weights that this leaves."""
    exact: Tensors = {}

    def change(tensors: Tensors) -> None:
        for name, tensor in list(tensors.items()):
            exact[name] = tensor.float()
            if not name.endswith("_proj.weight"):
                continue
            rows, columns = tensor.shape
            blocks = tensor.float().view(rows // block, block, columns // block, block)
            scale = blocks.abs().amax(dim=(1, 3)) / 448
            rounded = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            tensors[name] = rounded.view(rows, columns)
            tensors[f"{name}_scale_inv"] = scale
            exact[name] = (rounded.float() * scale[:, None, :, None]).view(rows, columns)

    rewrite_weights(folder, change)
    set_quantization(folder, {"quant_method": "fp8", "weight_block_size": [block, block], "fmt": "e4m3"})
    return exact


def set_quantization(folder: Path, settings: Any) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": settings}))


SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may hold float8 as it is")
def test_float8_is_widened_and_said(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    base, aligned = tiny.save_pair(tmp_path, dtype=torch.bfloat16, **SHAPE)
    exact = quantize(aligned)
    pair = ModelPair.load(base, aligned)
    noted = messages(pair)
    assert (
        "aligned: the weights are quantized (fp8) in the files; in memory they are held as bfloat16" in noted
    )
    assert "the models are not rounded alike (base: not quantized, aligned: fp8)" in noted
    for name, tensor in pair.aligned.state_dict().items():
        torch.testing.assert_close(tensor.float(), exact[name], rtol=2**-7, atol=1e-6)
    start = {name: tensor.float() for name, tensor in pair.base.state_dict().items()}
    merge_task_vector(
        pair, -0.3
    )  # an attack on the weights takes the widened numbers, and not those of the files
    for name, tensor in pair.aligned.state_dict().items():
        expected = start[name] - 0.3 * (exact[name] - start[name])
        torch.testing.assert_close(
            tensor.float(), expected, rtol=2**-6, atol=2**-7 * float(expected.abs().max())
        )
    assert pair.describe()["aligned"]["files"]["widened"] == 14  # seven in each of two layers
    held = sum(parameter.nbytes for parameter in pair.aligned.parameters())
    assert estimate(base, aligned).models[1].weights == held


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "foo"}, r"quant_method 'foo', which the installed transformers does not know"),
        ({"quant_method": None}, r"quant_method 'None'"),
        ("fp8", r"quantization_config of type str; expected an object"),
        ({"quant_method": "fp8"}, r"quant_method 'fp8' in config.json, and its files hold only F32"),
        (
            {"quant_method": "gptq", "bits": 4},
            r"quant_method 'gptq' in config.json, and its files hold only F32",
        ),
    ],
)
def test_a_quantization_that_the_files_do_not_have(
    folders: tuple[Path, Path], settings: Any, message: str
) -> None:
    set_quantization(folders[1], settings)
    with pytest.raises(PairError, match=message):
        ModelPair.load(*folders)


# Configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 0}, r"num_attention_heads = 0 in config.json; expected an integer above 0"),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers = 1000000000 .* files have only 21 tensors"),
        ({"rms_norm_eps": -1e-6}, r"rms_norm_eps = -1e-06 .* expected a number from 0 to 0.1"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
            r"rope_parameters.rope_theta = 0 .* above 0",
        ),
        ({"initializer_range": float("nan")}, r"initializer_range = nan .* expected a finite number"),
        ({"eos_token_id": "2"}, r"eos_token_id = '2' .* expected a token id, a list of ids, or null"),
        ({"model_type": "gemma"}, r"a gemma \(LlamaForCausalLM\): config.json contradicts itself"),
    ],
)
def test_numbers_that_no_model_has(folders: tuple[Path, Path], fields: dict[str, Any], message: str) -> None:
    config = folders[0] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    with pytest.raises(PairError, match=message):
        ModelPair.load(*folders)
