"""The contrast against a sum written out id by id."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eddecode.errors import EngineError
from eddecode.sampling.contrast import contrast, pair_weights
from helpers import reference


def logits(seed: int, rows: int, width: int, scale: float = 5.0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("terms", [1, 2, 3, 5])
@pytest.mark.parametrize("tau", [0.0, 0.05, 1.0])
def test_it_is_the_weighted_sum_of_any_number_of_terms(terms: int, tau: float) -> None:
    """Terms of different widths, weights of any sign, a mask, a row that has its own plausibility."""
    z = [logits(i, 4, 30 + 3 * i) for i in range(terms)]
    weights = logits(99, terms, 4, 1.5)
    allowed = set(range(25)) - {3, 7}
    mask = torch.tensor([i in allowed for i in range(25)])
    taus = torch.tensor([tau, 0.0, tau, 0.3])
    found = contrast(z, weights, mask, taus)
    assert found.shape == (4, 25)
    assert found.dtype == torch.float32
    for row in range(4):
        expected = reference.contrasted(
            [term[row, :25].double().numpy() for term in z],
            weights[:, row].tolist(),
            allowed,
            float(taus[row]),
        )
        np.testing.assert_allclose(found[row].double().numpy(), expected, rtol=1e-5, atol=1e-4)


def test_it_is_the_ed_distribution() -> None:
    """softmax of the contrast ∝ p_base^(1+α) / p_aligned^α (Zhou et al., eq. 6), for every α on the line."""
    base, aligned = logits(0, 7, 40), logits(1, 7, 40)
    alphas = torch.tensor([-3.0, -1.0, -0.4, 0.0, 0.3, 1.0, 2.0])
    found = contrast([base, aligned], pair_weights(alphas)).double().softmax(-1)
    p, q, a = base.double().softmax(-1), aligned.double().softmax(-1), alphas.double()[:, None]
    powers = p ** (1 + a) / q**a
    torch.testing.assert_close(found, powers / powers.sum(-1, keepdim=True), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found[1], q[1], rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(found[3], p[3], rtol=1e-5, atol=1e-12)


def test_weights_of_a_pair() -> None:
    assert pair_weights(0.5).tolist() == [1.5, -0.5]
    assert pair_weights(torch.tensor([0.0, -1.0])).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_float_weights_apply_to_all_rows() -> None:
    z = [logits(0, 3, 9), logits(1, 3, 9)]
    per_row = contrast(z, torch.tensor([[2.0] * 3, [-1.0] * 3]))
    assert torch.equal(contrast(z, [2.0, -1.0]), per_row)


def test_low_precision_logits_are_lifted_before_they_are_summed() -> None:
    z = [logits(0, 2, 50).bfloat16(), logits(1, 2, 50).bfloat16()]
    assert torch.equal(contrast(z, [3.0, -2.0]), contrast([z[0].float(), z[1].float()], [3.0, -2.0]))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_term_of_weight_zero_has_no_effect(bad: float) -> None:
    base, aligned = logits(0, 2, 6), logits(1, 2, 6)
    aligned[0, 2] = bad
    found = contrast([base, aligned], torch.tensor([[1.0, 1.0], [0.0, 0.5]]))
    assert torch.equal(found[0], base[0])


@pytest.mark.parametrize("weight", [2.0, -2.0, 1e-3])
def test_minus_infinity_in_a_term_of_nonzero_weight_masks_the_id(weight: float) -> None:
    base, aligned = logits(0, 1, 6), logits(1, 1, 6)
    aligned[0, 2] = -math.inf
    found = contrast([base, aligned], [1.0, weight])
    assert found[0, 2] == -math.inf
    assert found[0].isfinite().sum() == 5


def test_nan_and_plus_infinity_are_not_hidden() -> None:
    base = torch.tensor([[0.0, math.nan, 1.0]])
    assert contrast([base, torch.zeros(1, 3)], [2.0, -1.0])[0, 1].isnan()


def test_plausibility_is_relative_to_ids_that_may_be_sampled() -> None:
    """The maximum is that of the allowed ids: a masked id of high probability must not exclude all others."""
    base = torch.tensor([[50.0, 1.0, 0.9, -30.0]])
    mask = torch.tensor([False, True, True, True])
    found = contrast([base, torch.zeros(1, 4)], [1.0, 0.0], mask, 0.5)
    assert found[0].isfinite().tolist() == [False, True, True, False]


def test_plausibility_of_one_keeps_the_most_likely_tokens_of_the_base() -> None:
    base = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    assert contrast([base, logits(0, 1, 4)], [2.0, -1.0], None, 1.0)[0].isfinite().tolist() == [
        False,
        True,
        True,
        False,
    ]


def test_errors() -> None:
    z = [torch.zeros(1, 4), torch.zeros(1, 3)]
    with pytest.raises(EngineError, match=r"2 logit tensors and 3 weights; expected one weight per tensor"):
        contrast(z, [1.0, 2.0, 3.0])
    with pytest.raises(EngineError, match=r"vocabulary has 4 ids but the logits are only \[4, 3\] wide; cut"):
        contrast(z, [1.0, 2.0], torch.ones(4, dtype=torch.bool))
