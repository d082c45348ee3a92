"""The Triton kernels: on a GPU where there is one, else under Triton's interpreter, against the same oracle.

The interpreter (`test_interpreter`) runs one program at a time in numpy, so it sees few rows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip(
    "triton", reason="triton is not installed: pip install triton (the CPU build of torch lacks it)"
)

from eddecode.errors import EngineError
from eddecode.sampling.dispatch import contrast_and_sample
from eddecode_kernels import sample_triton
from eddecode_kernels.types import RawSample, SampledTokens, SampleInputs, SamplingRows
from helpers import kernel_oracle
from helpers.interpreter import DEVICE, runs
from helpers.kernel_oracle import BAD, TOLERANCE, Case, assert_draws, probabilities, random_case


def run(cases: list[Case], uniforms: np.ndarray, vocabulary: np.ndarray | None = None) -> SampledTokens:
    return kernel_oracle.run(cases, uniforms, vocabulary, "triton", DEVICE)


@runs
@pytest.mark.parametrize("widths", [(1, 1), (7, 12), (16, 16, 16), (1000, 1003), (3000, 2500)], ids=str)
def test_mixed_rows_follow_the_oracle(widths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(sum(widths))
    for spread in (0.25, 4.0):
        vocabulary = None if spread > 1 else rng.random(min(widths)) < 0.8
        if vocabulary is not None:
            vocabulary[0] = True
        cases = [random_case(rng, widths, spread) for _ in range(60 if DEVICE == "cuda" else 4)]
        uniforms = rng.random(len(cases))
        assert_draws(cases, uniforms, vocabulary, run(cases, uniforms, vocabulary))


@runs
@pytest.mark.parametrize("filters", [{"top_p": 0.6}, {"top_k": 60, "top_p": 0.8, "min_p": 0.01}, {}], ids=str)
def test_every_token_of_the_support_is_sampled_at_the_middle_of_its_interval(filters: dict) -> None:
    rng = np.random.default_rng(1)
    case = Case(
        [np.round(rng.normal(size=90) * 8) / 8 for _ in range(2)], [1.5, -0.5], temperature=1.3, **filters
    )
    p = probabilities(case, None)
    tokens = np.flatnonzero(p > 3 * TOLERANCE)[:: 1 if DEVICE == "cuda" else 4]
    draw = run([case] * len(tokens), (np.cumsum(p) - p / 2)[tokens])
    np.testing.assert_array_equal(draw.tokens.cpu().numpy(), tokens)


@runs
@pytest.mark.parametrize(
    "values", [[-(2.0**e) for e in range(-60, 30)], [1.5] * 50, [3.0, -3e38, -1e30, -1e30]], ids=len
)
@pytest.mark.parametrize(
    "filters", [{"top_p": 0.7}, {"top_k": 3}, {"top_p": 0.9, "temperature": 1e30}], ids=str
)
def test_filters_hold_on_awkward_distributions(values: list[float], filters: dict) -> None:
    case = Case([np.array(values, dtype=np.float32)], [1.0], **filters)
    uniforms = np.array([0.0, 0.4, 0.999])
    assert_draws([case] * 3, uniforms, None, run([case] * 3, uniforms))


@runs
def test_greedy_masks_and_plausibility() -> None:
    dead = np.array([0.0, -np.inf, 0.0, 0.0])
    live = np.array([0.0, 9.0, 4.0, 4.0])
    assert run([Case([live, dead], [1.5, -0.5], 0.0)], np.array([0.9])).tokens.tolist() == [2]
    assert run([Case([live, dead], [1.0, 0.0], 0.0)], np.array([0.9])).tokens.tolist() == [1]
    base = np.array([10.0, 2.0, 1.5, -5.0])
    case = Case([base, np.zeros(4)], [1.0, -1.0], plausibility=0.5, forbidden=[0])
    assert set(run([case] * 5, np.linspace(0, 0.99, 5)).tokens.tolist()) == {1, 2}


@runs
@pytest.mark.parametrize(("case", "message"), BAD)
def test_a_row_that_cannot_be_sampled_is_named(case: Case, message: str) -> None:
    good = Case([np.zeros(3)], [1.0])
    with pytest.raises(EngineError, match=message):
        run([good, case, good], np.zeros(3))


@runs
def test_a_launch_writes_where_a_captured_step_reads() -> None:
    logits = tuple(
        torch.randn(2, 40, generator=torch.Generator().manual_seed(i)).to(DEVICE) for i in range(2)
    )
    ones = torch.ones(2, device=DEVICE)
    rows = SamplingRows(ones, ones.long() * 0, ones, ones * 0, ones * 0)
    u = torch.tensor([0.3, 0.8], dtype=torch.float64, device=DEVICE)
    inputs = SampleInputs(logits, torch.stack([ones * 1.5, ones * -0.5]), rows, u, None, (), 40)
    given = RawSample(
        torch.full((2,), -1, device=DEVICE),
        torch.full((3, 2), torch.nan, device=DEVICE),
        torch.full((2,), -1, dtype=torch.int32, device=DEVICE),
    )
    expected = sample_triton.launch(inputs)
    assert sample_triton.launch(inputs, raw=given) is given
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(given, name), tensor)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_a_large_batch_follows_the_reference() -> None:
    g = torch.Generator(DEVICE).manual_seed(0)
    batch, width = 64, 128_000
    logits = [torch.randn(batch, width, generator=g, device=DEVICE) * 4 for _ in range(2)]
    alpha = torch.linspace(-1, 2, batch, device=DEVICE)
    for top_k, top_p in ((0, 1.0), (0, 0.9), (50, 0.8)):
        ones = torch.ones(batch, device=DEVICE)
        rows = SamplingRows(ones, (ones * top_k).long(), ones * top_p, ones * 0, ones * 1e-6)
        u = torch.rand(batch, generator=g, device=DEVICE, dtype=torch.float64)
        weights = torch.stack([1 + alpha, -alpha])
        fast, slow = (
            contrast_and_sample(logits, weights, rows, u, backend=b) for b in ("triton", "reference")
        )
        assert (
            fast.tokens != slow.tokens
        ).sum() <= 1  # a uniform within 4e-6 of a boundary: once in 4000 runs
        same = fast.tokens == slow.tokens
        torch.testing.assert_close(fast.logprobs[:, same], slow.logprobs[:, same], rtol=1e-5, atol=1e-5)
