"""The contracts of the engine: sampled as the distribution says, with random numbers that α's share."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams
from helpers import reference
from helpers.decoding import pair, prompt, sampler, tokens

# Sampled as the distribution says --------------------------------------------------------------------------------

DRAWS = 2000
FILTERS: list[dict[str, Any]] = [
    {"alpha": 0.0},
    {"alpha": -1.0, "temperature": 0.7},
    {"alpha": 0.5, "temperature": 1.5},
    {"alpha": 1.0, "top_k": 4},
    {"alpha": 0.3, "temperature": 2.0, "top_p": 0.8},
    {"alpha": 2.0, "min_p": 0.05},
    {"alpha": 1.0, "plausibility": 0.1},
    {"alpha": -0.5, "temperature": 1.2, "top_k": 8, "top_p": 0.95, "min_p": 0.01},
]


def chi_square(counts: np.ndarray[Any, Any], p: np.ndarray[Any, Any]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; cells that expect fewer than five draws are pooled into one."""
    expected = p * counts.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5:  # too few to stand alone: join the smallest cell
        smallest = int(np.argmin(expected[:-1]))
        for cells in (observed, expected):
            cells[smallest] += cells[-1]
        observed, expected = observed[:-1], expected[:-1]
    return float(((observed - expected) ** 2 / expected).sum()), len(expected) - 1


def test_draws_follow_the_closed_form() -> None:
    """The sum of independent chi-square statistics is chi-square with the sum of their degrees of freedom.

    One threshold for all: a right sampler fails it for one choice of seeds in 10⁴, and the seeds are fixed.
    """
    small = pair("llama", 11)
    made = Sampler(small, max_slots=512)
    total, freedom = 0.0, 0
    for i, setting in enumerate(FILTERS):
        p = prompt(40 + i, 3, 4, 11)
        done = made.generate(p, SamplingParams(max_new_tokens=1, n=DRAWS, seed=i, ignore_eos=True, **setting))
        counts = np.bincount([c.token_ids[0] for c in done], minlength=11)
        logits = [reference.next_logits(m, ids) for m, ids in zip(small.models, p.ids, strict=True)]
        rest = {k: v for k, v in setting.items() if k not in ("alpha", "plausibility")}
        alpha = setting["alpha"]
        z = reference.contrasted(logits, (1 + alpha, -alpha), None, setting.get("plausibility", 0.0))
        expected = reference.filtered(z, rest.pop("temperature", 1.0), **rest)
        assert counts[expected == 0].sum() == 0, setting
        assert (expected > 0).sum() >= 2, setting
        statistic, degrees = chi_square(counts, expected)
        total, freedom = total + statistic, freedom + degrees
    assert stats.chi2.sf(total, freedom) > 1e-4


def test_whole_sequences_follow_the_product_of_their_tokens() -> None:
    """All 5³ continuations of a model with five ids, each with its exact probability under the contrast."""
    small = pair("gpt2", 5)
    alpha, length, p = 0.8, 3, prompt(3, 4, 2, 5)

    @cache
    def after(begun: tuple[int, ...]) -> reference.Floats:
        logits = [
            reference.next_logits(m, [*ids, *begun]) for m, ids in zip(small.models, p.ids, strict=True)
        ]
        return reference.softmax(reference.contrasted(logits, (1 + alpha, -alpha)))

    exact = np.zeros((5,) * length)
    for sequence in np.ndindex(*exact.shape):
        exact[sequence] = np.prod([after(sequence[:t])[token] for t, token in enumerate(sequence)])
    assert exact.sum() == pytest.approx(1.0, abs=1e-9)
    done = Sampler(small, max_slots=512).generate(
        p, SamplingParams(alpha=alpha, max_new_tokens=length, n=3000, seed=5, ignore_eos=True)
    )
    counts = np.zeros_like(exact)
    for completion in done:
        counts[tuple(completion.token_ids)] += 1
    statistic, freedom = chi_square(counts.reshape(-1), exact.reshape(-1))
    assert freedom > 10
    assert stats.chi2.sf(statistic, freedom) > 1e-4


def test_alphas_share_their_random_numbers() -> None:
    """Two α's that agree so far draw with the same uniform: at nearly equal α's, the same completion."""
    params = SamplingParams(alpha=0.5, max_new_tokens=12, n=8, seed=3, ignore_eos=True)
    made, p = sampler(), prompt(1, 4, 6)
    near = tokens(made.generate(p, params.replace(alpha=0.5 + 1e-6)))
    assert tokens(made.generate(p, params)) == near
    assert tokens(made.generate(p, params.replace(seed=4))) != near
    assert len({tuple(row) for row in near}) == 8  # samples of one prompt have streams of their own
