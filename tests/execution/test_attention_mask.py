"""Masks against their definition, key by key; kinds of layers without one are refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from eddecode.errors import UnsupportedLayersError
from eddecode.execution.attention import AttentionMaskBuilder


class Config:
    """As much of a configuration as a mask looks at."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)


def visible(kind: str, query: int, key: int) -> bool:
    if kind == "sliding_attention":
        return query - 4 < key <= query
    if kind == "chunked_attention":
        return key <= query and key // 4 == query // 4
    return key <= query


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_against_their_definition(dtype: torch.dtype) -> None:
    kinds = ["full_attention", "sliding_attention", "chunked_attention"]
    config = Config(layer_types=[*kinds, *kinds], sliding_window=4, attention_chunk_size=4)
    positions = torch.tensor([[0, 1, 2], [7, 8, 9], [3, 4, 5]])
    masks = AttentionMaskBuilder(config).build(positions, 10, dtype)
    assert isinstance(masks, dict)
    assert set(masks) == set(kinds)
    for kind, row, place, key in itertools.product(kinds, range(3), range(3), range(10)):
        seen = visible(kind, int(positions[row, place]), key)
        value = masks[kind][row, 0, place, key]
        assert value == (0 if seen else torch.finfo(dtype).min)
        assert value.dtype == dtype


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "full_attention"),
        ({"sliding_window": None}, "full_attention"),
        ({"sliding_window": 4}, "sliding_attention"),
        ({"attention_chunk_size": 4, "sliding_window": None}, "chunked_attention"),
    ],
)
def test_models_of_one_kind_take_one_mask(fields: dict[str, Any], kind: str) -> None:
    mask = AttentionMaskBuilder(Config(**fields)).build(torch.tensor([[6]]), 8, torch.float32)
    assert isinstance(mask, torch.Tensor)
    assert (mask[0, 0, 0] == 0).tolist() == [visible(kind, 6, key) for key in range(8)]


@pytest.mark.parametrize("kind", ["linear_attention", "conv", "hybrid"])
def test_layers_that_do_not_attend_over_a_mask_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedLayersError, match=kind):
        AttentionMaskBuilder(Config(layer_types=["full_attention", kind])).build(
            torch.tensor([[0]]), 1, torch.float32
        )


def test_windows_that_the_model_applies_itself_are_refused() -> None:
    """GPT-Neo cuts its local layers' windows from the end of the keys, where short rows are not."""
    with pytest.raises(UnsupportedLayersError, match="window of the model's own"):
        AttentionMaskBuilder(Config(attention_layers=["global", "local"])).build(
            torch.tensor([[0]]), 1, torch.float32
        )
