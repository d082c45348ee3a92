"""One pass over two rows of logits: scores at every α against float64, masks, and non-finite logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from eddecode.sampling.contrast import contrast, pair_weights
from eddecode_kernels import score as kernel

INF = float("inf")
ALPHAS = (-2.0, -1.0, -0.4, 0.0, 0.3, 2.0)


# The kernel: one reading of two rows of logits


def rows(count: int, width: int, seed: int = 0, spread: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = spread * torch.randn(count, width, generator=generator)
    return base, base + torch.randn(count, width, generator=generator)


def weights(alphas: Sequence[float]) -> torch.Tensor:
    return torch.stack([pair_weights(alpha) for alpha in alphas]) if alphas else torch.zeros(0, 2)


@pytest.fixture(params=["compiled", "torch"])
def score_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "torch":
        monkeypatch.setenv("EDDECODE_KERNELS", "reference")
        monkeypatch.setattr(kernel, "SLICE", 5000)  # several slices
    return kernel.score_rows


def expected_rows(
    logits: Sequence[torch.Tensor], targets: torch.Tensor, alphas: Sequence[float], vocabulary: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By the definition of the contrast, all else in float64."""

    def chosen(z: torch.Tensor) -> torch.Tensor:
        return z.double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    own = torch.stack([chosen(z) for z in logits])
    contrasts = torch.stack([chosen(contrast(logits, pair_weights(a), vocabulary)) for a in alphas])
    base, aligned = (
        z[:, : len(vocabulary)].masked_fill(~vocabulary, -INF).double().log_softmax(-1) for z in logits
    )
    divergences = [
        torch.where(p == -INF, 0.0, p.exp() * (p - q)).nansum(-1)
        for p, q in ((aligned, base), (base, aligned))
    ]
    return own, contrasts, torch.stack(divergences).flip(0)


@pytest.mark.parametrize("width", [1, 15, 16, 300, 2048, 4099, 10_000])
def test_scores_equal_float64(score_rows: Any, width: int) -> None:
    wide = rows(9, width + 21, seed=width)
    logits = [wide[0], wide[1][:, : width + 5]]  # the models' widths differ, and exceed the vocabulary
    vocabulary = torch.ones(width, dtype=torch.bool)
    vocabulary[1::7] = False
    targets = torch.arange(9) * 7 % width
    targets[~vocabulary[targets]] = 0
    found = score_rows(logits, targets, weights(ALPHAS), vocabulary)
    own, contrasts, divergences = expected_rows(logits, targets, ALPHAS, vocabulary)
    torch.testing.assert_close(found.own, own, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.contrasts, contrasts, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.divergences, divergences, rtol=0, atol=2e-6)


@pytest.mark.parametrize("width", [1, 15, 300, 2049, 5000])
def test_the_most_likely_token_and_no_other_is_greedy(score_rows: Any, width: int) -> None:
    """Of equal logits (bfloat16 gives many) the lowest id; ids outside the vocabulary do not count."""
    base, aligned = (z.round() for z in rows(12, width, seed=width, spread=2.0))
    base[:, ::5] = -INF
    base[:, 0] = 0.0
    vocabulary = torch.ones(width, dtype=torch.bool)
    vocabulary[2::3] = False
    alphas = (-1.0, 0.0, 1.0, -3.0)  # with these the contrast of whole numbers is exact
    first = torch.stack([contrast([base, aligned], pair_weights(a), vocabulary) for a in alphas])
    best = torch.tensor(first.double().numpy().argmax(-1))  # numpy: the first of several
    for targets in (*best, torch.arange(12) * 3 % width):
        targets = torch.where(vocabulary[targets], targets, 0)
        found = score_rows([base, aligned], targets, weights(alphas), vocabulary)
        assert torch.equal(found.greedy, best == targets)


def test_a_later_block_may_be_far_above_the_first(score_rows: Any) -> None:
    base, aligned = rows(3, 9000)
    base[1, 5000:] += 70  # above the reference, but within what a float can hold
    base[2, 5000:] += 300
    aligned[0, 7000] += 500
    targets = torch.tensor([7000, 5001, 4])
    vocabulary = torch.ones(9000, dtype=torch.bool)
    found = score_rows([base, aligned], targets, weights(ALPHAS), vocabulary)
    own, contrasts, _ = expected_rows([base, aligned], targets, ALPHAS, vocabulary)
    torch.testing.assert_close(found.own, own, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.contrasts, contrasts, rtol=1e-6, atol=2e-4)


def test_an_id_outside_the_vocabulary_may_have_nearly_all_mass(score_rows: Any) -> None:
    base, aligned = rows(2, 3000)
    base[:, 2500] = 400.0
    vocabulary = torch.ones(3000, dtype=torch.bool)
    vocabulary[2500] = False
    targets = torch.tensor([3, 2999])
    found = score_rows([base, aligned], targets, weights(ALPHAS), vocabulary)
    own, contrasts, divergences = expected_rows([base, aligned], targets, ALPHAS, vocabulary)
    torch.testing.assert_close(found.own, own, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.contrasts, contrasts, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.divergences, divergences, rtol=0, atol=2e-6)


def test_zero_probability_is_minus_infinity_never_nan(score_rows: Any) -> None:
    base, aligned = rows(3, 700)
    base[0, 5] = aligned[
        1, 5
    ] = -INF  # the target of row 0 is ruled out by the base, of row 1 by the aligned model
    aligned[2, 9] = -INF  # and another id of row 2
    targets = torch.tensor([5, 5, 5])
    alphas = (-1.0, 0.0, 0.5, -3.0)
    found = score_rows([base, aligned], targets, weights(alphas))
    assert found.own[:, :2].tolist() == [[-INF, found.own[0, 1].item()], [found.own[1, 0].item(), -INF]]
    assert found.own[0, 1].isfinite()
    assert found.own[1, 0].isfinite()
    assert (found.contrasts == -INF).tolist() == [
        [False, True, False],  # α = −1: the aligned model alone
        [True, False, False],
        [True, True, False],
        [True, True, False],
    ]
    _, contrasts, _ = expected_rows([base, aligned], targets, alphas, torch.ones(700, dtype=torch.bool))
    torch.testing.assert_close(found.contrasts[:, 2], contrasts[:, 2], rtol=0, atol=1e-5)
    assert not found.contrasts.isnan().any()
    # KL(base ‖ aligned) is infinite where the aligned model rules an id out, KL(aligned ‖ base) where the base does.
    assert (found.divergences == INF).tolist() == [[False, True, True], [True, False, False]]
    assert not found.divergences.isnan().any()


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("place", [0, 2500, 3005])
def test_non_finite_logits_give_nan(score_rows: Any, value: float, place: int) -> None:
    base, aligned = rows(2, 3010)
    aligned[1, place] = value
    found = score_rows(
        [base, aligned], torch.tensor([7, 7]), weights((0.5,)), torch.ones(3000, dtype=torch.bool)
    )
    assert found.own.isnan().tolist() == [[False, False], [False, True]]
    assert not found.contrasts[:, 0].isnan().any()


def test_all_minus_infinity_gives_nan(score_rows: Any) -> None:
    base, aligned = rows(1, 40)
    aligned[:] = -INF
    found = score_rows([base, aligned], torch.tensor([7]), weights((0.0,)))
    assert found.own.isnan().tolist() == [[False], [True]]
    assert found.contrasts.isfinite().all()


def test_equal_models_do_not_diverge(score_rows: Any) -> None:
    base, _ = rows(4, 5000)
    found = score_rows([base, base.clone()], torch.zeros(4, dtype=torch.int64), weights((3.0,)))
    assert found.divergences.abs().max() == 0
    torch.testing.assert_close(found.contrasts[0], found.own[0], rtol=0, atol=2e-5)


def test_score_rows_names_what_does_not_fit() -> None:
    base, aligned = rows(2, 40)
    with pytest.raises(ValueError, match=r"expected two \(3, ≥ 40\) torch.float32"):
        kernel.score_rows([base, aligned], torch.zeros(3, dtype=torch.int64), weights((0.0,)))
    with pytest.raises(
        ValueError, match="targets reach from 0 to 40; expected ids of the vocabulary, 0 to 39"
    ):
        kernel.score_rows([base, aligned], torch.tensor([0, 40]), weights((0.0,)))
