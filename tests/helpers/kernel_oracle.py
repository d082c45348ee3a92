"""Contrast-and-sample written out in numpy, float64, one row at a time: what every implementation must give.

Logits are multiples of 1/8 and weights of 1/4, so that the float32 contrast is exact and the oracle sees the same
ties. What is left is the rounding of the exponentials: a few units of 2^-24, times the size of their argument (at
most about 20 where there is any mass). TOLERANCE bounds what that can move a cumulated probability.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from eddecode.sampling.dispatch import contrast_and_sample
from eddecode_kernels.types import SampledTokens, SamplingRows

TOLERANCE = 4e-6


INF = float("inf")


@dataclass
class Case:
    """One row: N logit vectors, weights and sampling parameters."""

    logits: list[np.ndarray]
    weights: list[float]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    plausibility: float = 0.0
    forbidden: list[int] = field(default_factory=list)


def masked_contrast(case: Case, vocabulary: np.ndarray | None) -> np.ndarray:
    width = min(map(len, case.logits)) if vocabulary is None else len(vocabulary)
    allowed = np.ones(width, bool) if vocabulary is None else vocabulary.copy()
    allowed[[i for i in case.forbidden if i < width]] = False
    total = np.zeros(width)
    for w, z in zip(case.weights, case.logits, strict=True):
        if w:
            allowed &= z[:width] > -INF
            total += w * np.where(z[:width] > -INF, z[:width], 0.0)
    if case.plausibility:
        base = np.where(allowed, case.logits[0][:width].astype(float), -INF)
        allowed &= np.exp(base - base.max()) >= case.plausibility * (1 - 1e-9)
    return np.where(allowed, total, -INF)


def log_softmax(z: np.ndarray) -> np.ndarray:
    below_top = z.astype(float) - z.max()
    return below_top - np.log(np.exp(below_top).sum())


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(z))


def probabilities(case: Case, vocabulary: np.ndarray | None, shift: float = 0.0) -> np.ndarray:
    """The distribution that is drawn from; `shift` moves top-p, for draws whose token lies on the very edge."""
    z = masked_contrast(case, vocabulary)
    if case.temperature == 0:
        return np.eye(len(z))[int(np.argmax(z))]
    p = softmax(z / case.temperature)
    if case.top_k and case.top_k < len(z):
        p = np.where(z >= np.sort(z)[-case.top_k], p, 0.0)
    if case.top_p < 1:
        p = p / p.sum()
        nucleus = [v for v in np.unique(z[p > 0]) if p[z > v].sum() < float(np.float32(case.top_p)) + shift]
        p = np.where(z >= min(nucleus, default=z.max()), p, 0.0)
    p = np.where(p >= float(np.float32(case.min_p)) * p.max() * (1 - 1e-9), p, 0.0)
    return p / p.sum()


def run(
    cases: list[Case],
    uniforms: np.ndarray,
    vocabulary: np.ndarray | None = None,
    backend: str = "cpu",
    device: str = "cpu",
) -> SampledTokens:
    names = {"temperature": torch.float32, "top_k": torch.int64} | dict.fromkeys(
        ("top_p", "min_p", "plausibility"), torch.float32
    )
    columns = {
        name: torch.tensor([getattr(case, name) for case in cases], dtype=dtype, device=device)
        for name, dtype in names.items()
    }
    terms = zip(*(case.logits for case in cases), strict=True)
    return contrast_and_sample(
        [torch.tensor(np.stack(term), dtype=torch.float32, device=device) for term in terms],
        torch.tensor([case.weights for case in cases], dtype=torch.float32, device=device).T,
        SamplingRows(**columns),
        torch.tensor(uniforms, dtype=torch.float64, device=device),
        None if vocabulary is None else torch.tensor(vocabulary, device=device),
        [(row, case.forbidden) for row, case in enumerate(cases) if case.forbidden],
        backend=backend,
    )


def assert_draws(
    cases: list[Case], uniforms: np.ndarray, vocabulary: np.ndarray | None, draw: SampledTokens
) -> None:
    """Each token lies where its uniform falls in the oracle's CDF, and its log-probabilities are the oracle's."""
    for row, (case, u) in enumerate(zip(cases, uniforms, strict=True)):
        token = int(draw.tokens[row])
        intervals = []
        for shift in (0.0, -TOLERANCE, TOLERANCE):
            p = probabilities(case, vocabulary, shift)
            upper = np.cumsum(p)[token]
            intervals.append((p[token] > 0, upper - p[token] - TOLERANCE, upper + TOLERANCE))
        assert any(there and low <= u <= high for there, low, high in intervals), (row, token, u, intervals)
        distributions = [*case.logits, masked_contrast(case, vocabulary)]
        expected = [log_softmax(z)[token] for z in distributions]
        np.testing.assert_allclose(draw.logprobs[:, row].cpu().numpy(), expected, rtol=1e-6, atol=2e-6)


def random_case(rng: np.random.Generator, widths: tuple[int, ...], spread: float) -> Case:
    logits = [np.round(rng.normal(size=w) * spread * 8) / 8 for w in widths]
    alpha = rng.choice([-1.0, 0.0, 0.5, 2.0, -0.25])
    weights = [1 + alpha, -alpha] if len(widths) == 2 else list(rng.integers(-4, 5, len(widths)) / 4)
    width = min(widths)
    return Case(
        logits,
        weights,
        temperature=rng.choice([0.0, 0.5, 1.0, 1.75, 100.0]),
        top_k=int(rng.choice([0, 0, 1, 5, 50, width, 10 * width])),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.5, 0.999, 0.01]),
        min_p=rng.choice([0.0, 0.0, 0.05, 1.0]),
        plausibility=rng.choice([0.0, 0.0, 0.1, 1e-3]),
        forbidden=list(rng.integers(1, width, 3)) if width > 4 and rng.random() < 0.3 else [],
    )


BAD = [
    (Case([np.array([0.0, np.nan, 1.0])], [1.0]), r"row 1: the logits of model 0 contain NaN or \+inf"),
    (Case([np.array([0.0, INF, 1.0])], [1.0]), r"row 1: the logits of model 0 contain NaN or \+inf"),
    (Case([np.array([0.0, 3e38, 1.0])], [8.0]), "row 1: the contrasted logits are not finite"),
    (Case([np.array([-INF, -INF, -INF])], [1.0]), "row 1: no token is left to sample"),
    (Case([np.array([0.0, 0.0, 0.0])], [1.0], forbidden=[0, 1, 2]), "row 1: no token is left to sample"),
    (
        Case([np.array([np.nan, np.nan, np.nan])], [0.0], 0.0),
        r"row 1: the logits of model 0 contain NaN or \+inf",
    ),
]
