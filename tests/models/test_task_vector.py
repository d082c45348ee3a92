"""base + l·(aligned − base), against a naive sum in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from eddecode.errors import PairError
from eddecode.models.pair import ModelPair
from eddecode.models.task_vector import merge_task_vector, remove_top_directions
from eddecode.models.weight_sharing import share_identical
from helpers import tiny


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
    base.is_quantized = True
    with pytest.raises(PairError, match="quantized"):
        merge_task_vector(ModelPair.from_models(base, tiny.tiny_aligned(base)), -0.3)
