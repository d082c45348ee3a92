"""Compiled attention against float64 over every kind of range, and the same bits in any batch."""

from __future__ import annotations

import pytest
import torch

from eddecode.errors import UnsupportedLayersError
from eddecode.execution.attention import NAME, KeyRangeMask, slot_attention
from eddecode.execution.runner import CachedModelRunner
from eddecode_kernels.layers_cpu import attend, attention_available
from helpers import decoding, tiny

pytestmark = pytest.mark.skipif(
    not attention_available(torch.float32, torch.device("cpu")),
    reason="no C++ compiler: models attend by themselves",
)
# rows, heads, heads of keys, tokens, keys, size of a key, size of a value
SHAPES = [
    (3, 4, 2, 1, 40, 64, 64),
    (2, 6, 3, 5, 33, 20, 24),
    (1, 8, 1, 7, 100, 128, 128),
    (2, 2, 2, 3, 20, 40, 70),
]


def problem(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """(query, key, value, first, stop); keys and values are views of longer buffers, as a cache gives them."""
    rows, heads, groups, tokens, keys, size, width = shape
    g = torch.Generator().manual_seed(sum(shape))
    query = torch.randn(rows, heads, tokens, size, generator=g).to(dtype)
    key = torch.randn(rows, groups, keys + 9, size, generator=g).to(dtype)[:, :, :keys]
    value = torch.randn(rows, groups, keys + 9, width, generator=g).to(dtype)[:, :, :keys]
    stop = torch.randint(1, keys + 1, (rows, tokens), generator=g)
    first = (stop * torch.rand(rows, tokens, generator=g)).long().clamp(max=stop - 1)
    return query, key, value, first, stop


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_against_float64(dtype: torch.dtype, shape: tuple[int, ...], softcap: float) -> None:
    query, key, value, first, stop = problem(shape, dtype)
    found = attend(query, key, value, first, stop, 0.2, softcap)
    repeats = shape[1] // shape[2]
    keys, values = (x.double().repeat_interleave(repeats, 1) for x in (key, value))
    scores = query.double() @ keys.transpose(2, 3) * 0.2
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(shape[4])
    seen = (position >= first[..., None]) & (position < stop[..., None])
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    expected = (weights @ values).transpose(1, 2)
    # float32 throughout; a bf16 result is rounded once, to 2⁻⁹ of a value of at most about 4
    assert (found.double() - expected).abs().max() < (2e-6 if dtype == torch.float32 else 2**-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_query_has_the_same_bits_alone(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    query, key, value, first, stop = problem(shape, dtype)
    whole = attend(query, key, value, first, stop, 0.2)
    for row in range(shape[0]):
        for token in range(shape[3]):
            r, t = slice(row, row + 1), slice(token, token + 1)
            alone = attend(
                query[r, :, t], key[r], value[r], first[r, t].contiguous(), stop[r, t].contiguous(), 0.2
            )
            assert torch.equal(alone[0, 0], whole[row, token])


def test_keys_beyond_the_range_are_not_read() -> None:
    query, key, value, first, stop = problem(SHAPES[0], torch.float32)
    expected = attend(query, key, value, first, stop, 0.2)
    position = torch.arange(SHAPES[0][4])
    seen = ((position >= first[..., None]) & (position < stop[..., None])).any(1)  # (rows, keys)
    hidden = ~seen[:, None, :, None]
    after = position >= stop.max(1).values[:, None]
    key, value = key.masked_fill(hidden, 3e38), value.masked_fill(after[:, None, :, None], torch.nan)
    assert torch.equal(attend(query, key, value, first, stop, 0.2), expected)


def test_unsupported_arguments_are_refused() -> None:
    query, key, value, first, stop = problem(SHAPES[0], torch.float32)
    with pytest.raises(ValueError, match="attend cannot take query"):
        attend(query.double(), key, value, first, stop, 0.2)
    with pytest.raises(ValueError, match="attend cannot take query"):
        attend(query, key[:, :, ::2], value[:, :, ::2], first, stop, 0.2)


def test_unsupported_kinds_of_attention_are_refused() -> None:
    query, key, value, first, stop = problem(SHAPES[0], torch.float32)
    seen = KeyRangeMask.of(first, stop)
    assert (
        slot_attention(None, query, key, value, seen, scaling=0.2, sliding_window=4, s_aux=None)[0].shape[1]
        == 1
    )
    with pytest.raises(UnsupportedLayersError, match="attention with s_aux"):
        slot_attention(None, query, key, value, seen, s_aux=torch.zeros(4))
    with pytest.raises(UnsupportedLayersError, match="a mask of its own"):
        slot_attention(None, query, key, value, torch.zeros(3, 1, 1, 40))


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_logits_equal_those_of_the_models_own_attention(arch: str) -> None:
    """Rows of different lengths, past the sliding window and over several tokens; the model is left as it was."""
    model = tiny.tiny_model(arch)
    before = model.config._attn_implementation
    model_runners = [CachedModelRunner(model), CachedModelRunner(model, dense_mask=True)]
    assert [model_runner.dense_mask for model_runner in model_runners] == [False, True]
    results = []
    for model_runner in model_runners:
        for prefix in model_runner.prefill([decoding.ids(1, 21), decoding.ids(2, 3)]):
            model_runner.add(prefix)
        steps = [
            model_runner.forward(torch.tensor([[7, 8], [9, 10]])),
            model_runner.forward(torch.tensor([[11], [12]])),
        ]
        results.append(torch.cat(steps, dim=1))
    torch.testing.assert_close(results[0], results[1], atol=2e-4, rtol=2e-4)
    assert model.config._attn_implementation == before != NAME
