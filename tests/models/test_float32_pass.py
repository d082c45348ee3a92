"""The float32 pass converts what an operation computes with, and nothing else."""

from __future__ import annotations

import pytest
import torch

from eddecode.models import float32_pass
from eddecode.models.float32_pass import Float32Pass

ROWS, WIDTH = 640, 8


def test_a_weight_that_is_used_block_by_block_is_converted_block_by_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.randn(ROWS, WIDTH).to(torch.bfloat16)
    converted: list[int] = []
    wide = float32_pass._wide

    def counted(value: object) -> object:
        if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16:
            converted.append(value.numel())
        return wide(value)

    monkeypatch.setattr(float32_pass, "_wide", counted)
    x = torch.randn(2, WIDTH)
    with Float32Pass():
        assert weight.is_floating_point()
        assert weight.size(0) == ROWS
        blocks = [x @ weight[start : start + 64].T for start in range(0, ROWS, 64)]
        turned = x @ weight.transpose(0, 1)
    expected = x @ weight.float().T
    torch.testing.assert_close(torch.cat(blocks, 1), expected)
    assert turned.dtype == torch.float32
    torch.testing.assert_close(turned, expected)
    assert sum(converted) <= 2 * ROWS * WIDTH + 64 * WIDTH
