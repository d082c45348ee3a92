"""base + l·(aligned − base), against a naive sum in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from eddecode.errors import PairError
from eddecode.models.pair import ModelPair
from eddecode.models.stored_elements import TensorReader
from eddecode.models.task_vector import merge_task_vector, remove_top_directions
from eddecode.models.weight_sharing import share_identical
from helpers import tiny
from helpers.pairs import save_adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [-0.3, 0.5, 1.7])
def test_every_tensor_is_the_naive_sum(
    scale: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eddecode.models.task_vector._BLOCK", 100)  # several blocks per tensor
    base = tiny.tiny_model("llama", dtype=dtype)
    aligned = tiny.tiny_aligned(base)
    next(iter(aligned.parameters())).data = next(
        iter(base.parameters())
    ).data.clone()  # one that did not change
    before, expected = copy.deepcopy(base), {}
    for name, tensor in aligned.named_parameters():
        start = base.get_parameter(name).double()
        expected[name] = (start + scale * (tensor.double() - start)).to(dtype)
    share_identical([base, aligned])  # as the loader does
    pair = ModelPair.from_models(base, aligned)
    merge_task_vector(pair, scale)
    for name, tensor in pair.aligned.named_parameters():
        assert tensor.dtype == dtype
        # One rounding of the float32 sum may fall on the other side of a tie.
        tolerance = 1e-6 if dtype == torch.float32 else 2**-7
        assert torch.allclose(tensor.float(), expected[name].float(), rtol=tolerance, atol=1e-7), name
    for name, tensor in before.named_parameters():
        assert torch.equal(tensor, pair.base.get_parameter(name)), f"{name} of the base changed"


@pytest.mark.parametrize("rank", [1, 3, 1000])
def test_top_directions_are_removed_from_matrices(rank: int) -> None:
    base, aligned = tiny.tiny_pair_models("llama", tie_word_embeddings=False)
    expected = {}
    for name, tensor in aligned.named_parameters():
        own, start = tensor.double().numpy(), base.get_parameter(name).double().numpy()
        if own.ndim == 2 and "embed" not in name and "lm_head" not in name:
            left, sizes, right = np.linalg.svd(own - start, full_matrices=False)
            own = start + (left[:, rank:] * sizes[rank:]) @ right[rank:]
        expected[name] = torch.from_numpy(own.copy())
    pair = ModelPair.from_models(base, aligned)
    remove_top_directions(pair, rank)
    for name, tensor in pair.aligned.named_parameters():
        assert torch.allclose(tensor.double(), expected[name], atol=1e-5), name


def test_tied_tensors_are_added_once() -> None:
    base, aligned = tiny.tiny_pair_models("llama", tie_word_embeddings=True)
    start, end = (m.get_input_embeddings().weight.double().clone() for m in (base, aligned))
    pair = ModelPair.from_models(base, aligned)
    merge_task_vector(pair, -0.5)
    merged = pair.aligned.get_input_embeddings().weight
    assert merged.data_ptr() == pair.aligned.get_output_embeddings().weight.data_ptr()
    assert torch.allclose(merged.double(), start - 0.5 * (end - start), atol=1e-6)


def test_a_low_rank_release_is_merged_without_its_factors() -> None:
    base, aligned = tiny.tiny_pair_models()
    aligned.low_rank_factors = {"x": (torch.zeros(1, 1), torch.zeros(1, 1))}
    pair = ModelPair.from_models(base, aligned)
    merge_task_vector(pair, -0.3)
    assert pair.factors is None


def test_added_tokens_keep_their_rows() -> None:
    base, larger = tiny.tiny_model("llama"), tiny.tiny_model("llama", vocab=tiny.VOCAB + 2, seed=5)
    start, end = (m.get_input_embeddings().weight.double().clone() for m in (base, larger))
    pair = ModelPair.from_models(base, larger)
    merge_task_vector(pair, -0.5)
    merged = pair.aligned.get_input_embeddings().weight.double()
    assert torch.allclose(merged[: tiny.VOCAB], start - 0.5 * (end[: tiny.VOCAB] - start), atol=1e-6)
    assert torch.equal(merged[tiny.VOCAB :], end[tiny.VOCAB :])


def test_models_that_cannot_be_added_are_refused() -> None:
    base = tiny.tiny_model("llama", tie_word_embeddings=False)
    other = tiny.tiny_model("llama", tie_word_embeddings=False, intermediate_size=40)
    with pytest.raises(PairError, match="the architectures are the same"):
        merge_task_vector(ModelPair.from_models(base, other), -0.3)
    grouped = tiny.tiny_model("llama", tie_word_embeddings=False, num_key_value_heads=1)
    with pytest.raises(PairError, match="the architectures are the same"):
        merge_task_vector(ModelPair.from_models(base, grouped), -0.3)
    deeper = tiny.tiny_model("llama", num_hidden_layers=5)
    with pytest.raises(PairError, match="do not have the same tensors"):
        merge_task_vector(ModelPair.from_models(base, deeper), -0.3)
    tied = tiny.tiny_model("llama", tie_word_embeddings=True)
    with pytest.raises(PairError, match="one in the aligned model and two in the base"):
        merge_task_vector(ModelPair.from_models(base, tied), -0.3)
    base.is_quantized = True
    with pytest.raises(PairError, match="quantized"):
        merge_task_vector(ModelPair.from_models(base, tiny.tiny_aligned(base)), -0.3)


# From files --------------------------------------------------------------------------------------------------------


def test_weights_are_read_from_the_files_with_all_their_digits(tmp_path: Path) -> None:
    """The pair is held in bfloat16, in which most of a small difference between float32 files is lost."""
    base = tiny.tiny_model("llama", tie_word_embeddings=False)
    aligned = tiny.tiny_aligned(base, amount=0.001)
    aligned.model.norm.weight.data = base.model.norm.weight.data.clone()
    folders = [tiny.save_model(tmp_path / name, model) for name, model in (("b", base), ("a", aligned))]
    pair = ModelPair.load(*folders, dtype="bfloat16")
    merge_task_vector(pair, -3.0)
    for name, tensor in pair.aligned.named_parameters():
        start = base.get_parameter(name)
        assert torch.equal(tensor, ((aligned.get_parameter(name) - start) * -3.0 + start).bfloat16()), name
        assert torch.equal(pair.base.get_parameter(name), start.bfloat16()), name


def test_a_tensor_that_is_the_same_in_both_stays_held_once(tmp_path: Path) -> None:
    base = tiny.tiny_model("llama")
    aligned = tiny.tiny_aligned(base)
    aligned.model.layers[1].mlp = base.model.layers[1].mlp
    folders = [tiny.save_model(tmp_path / name, model) for name, model in (("b", base), ("a", aligned))]
    pair = ModelPair.load(*folders)
    merge_task_vector(pair, -0.3)
    kept, moved = (
        [model.model.layers[i].mlp.up_proj.weight.data_ptr() for model in pair.models] for i in (1, 0)
    )
    assert kept[0] == kept[1]
    assert moved[0] != moved[1]


@pytest.mark.parametrize("arch", ["mixtral", "gpt2", "gemma2"])
def test_what_the_files_have_in_another_form_is_merged_in_memory(arch: str, tmp_path: Path) -> None:
    models = tiny.tiny_pair_models(arch)
    folders = [
        tiny.save_model(tmp_path / name, model) for name, model in zip(("b", "a"), models, strict=True)
    ]
    pair, alone = ModelPair.load(*folders), ModelPair.from_models(*models)
    for change in (lambda p: merge_task_vector(p, 0.5), lambda p: remove_top_directions(p, 2)):
        change(pair)
        change(alone)
        for name, tensor in pair.aligned.named_parameters():
            assert torch.allclose(tensor, alone.aligned.get_parameter(name), atol=1e-5), name


def test_an_adapter_is_merged_in_memory(tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "base", tiny.tiny_model("llama"))
    save_adapter(base, tmp_path / "adapter")
    pair = ModelPair.load(base, tmp_path / "adapter")
    start, end = (copy.deepcopy(dict(model.named_parameters())) for model in pair.models)
    assert not torch.equal(*(found["model.layers.0.mlp.up_proj.weight"] for found in (start, end)))
    merge_task_vector(pair, -0.5)
    for name, tensor in pair.aligned.named_parameters():
        expected = start[name].double() - 0.5 * (end[name].double() - start[name].double())
        assert torch.allclose(tensor.double(), expected, atol=1e-5), name


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    file = tiny.save_model(tmp_path, tiny.tiny_model("llama")) / "model.safetensors"
    reader = TensorReader(file)
    with file.open("r+b") as changed:
        changed.truncate(file.stat().st_size - 4)
    last = "model.norm.weight"  # and the last in the file
    with pytest.raises(PairError, match="corrupt or truncated"):
        reader.whole(last)
