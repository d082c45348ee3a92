"""Contrast-and-sample on the CPU, and in plain torch, against the oracle of `helpers.kernel_oracle`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eddecode.errors import EngineError
from eddecode.sampling.dispatch import contrast_and_sample, on_host, packed, unpacked
from eddecode_kernels.types import RawSample, SamplingRows
from helpers.kernel_oracle import (
    BAD,
    INF,
    TOLERANCE,
    Case,
    assert_draws,
    probabilities,
    random_case,
    run,
    softmax,
)

BACKENDS = ("reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "widths",
    [(1, 1), (7, 7), (7, 12), (16, 16, 16), (1000, 1003), (1024, 1024), (3000, 2500), (5, 5, 40, 5)],
    ids=str,
)
def test_mixed_rows_follow_the_oracle(backend: str, widths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(sum(widths))
    for spread in (0.0, 0.25, 2.0, 8.0):
        vocabulary = None if spread == 2.0 else rng.random(min(widths)) < 0.8
        if vocabulary is not None:
            vocabulary[0] = True
        cases = [random_case(rng, widths, spread) for _ in range(40 if min(widths) < 2000 else 12)]
        uniforms = rng.random(len(cases))
        assert_draws(cases, uniforms, vocabulary, run(cases, uniforms, vocabulary, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spread", [0.001, 1.0, 6.0])
def test_a_vocabulary_of_32k_follows_the_oracle(backend: str, spread: float) -> None:
    rng = np.random.default_rng(0)
    logits = [(rng.normal(size=32_000) * spread).astype(np.float32) for _ in range(2)]
    filters = [
        {},
        {"top_p": 0.9},
        {"top_k": 50, "top_p": 0.7},
        {"top_k": 9000, "min_p": 1e-3},
        {"temperature": 0.7},
    ]
    cases = [Case(logits, [1.0, 0.0], **chosen) for chosen in filters]
    uniforms = rng.random(len(cases))
    for case, u, token in zip(
        cases, uniforms, run(cases, uniforms, None, backend).tokens.tolist(), strict=True
    ):
        z = logits[0].astype(float) / case.temperature
        order = np.argsort(-z, kind="stable")[: case.top_k or None]
        p = softmax(z[order])
        order = order[np.cumsum(p) - p < case.top_p]
        order = order[z[order] >= z.max() + np.log(case.min_p)] if case.min_p else order
        kept = np.zeros_like(z)
        kept[order] = softmax(z[order])
        upper = np.cumsum(kept)[token]
        assert kept[token] > 0
        assert upper - kept[token] - TOLERANCE <= u <= upper + TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "filters", [{}, {"top_p": 0.6}, {"top_k": 300}, {"top_k": 700, "top_p": 0.8, "min_p": 0.01}], ids=str
)
def test_every_token_of_the_support_is_sampled_at_the_middle_of_its_interval(
    backend: str, filters: dict
) -> None:
    rng = np.random.default_rng(1)
    case = Case(
        [np.round(rng.normal(size=1500) * 8) / 8 for _ in range(2)], [1.5, -0.5], temperature=1.3, **filters
    )
    p = probabilities(case, None)
    tokens = np.flatnonzero(p > 3 * TOLERANCE)
    middles = (np.cumsum(p) - p / 2)[tokens]
    draw = run([case] * len(tokens), middles, None, backend)
    np.testing.assert_array_equal(draw.tokens.numpy(), tokens)


@pytest.mark.parametrize("backend", BACKENDS)
def test_chi_square_of_draws_with_random_uniforms(backend: str) -> None:
    rng = np.random.default_rng(2)
    case = Case([rng.normal(size=7) for _ in range(2)], [1.75, -0.75], temperature=0.8, top_p=0.95)
    draw = run([case] * 20_000, rng.random(20_000), None, backend)
    p = probabilities(case, None)
    counts = np.bincount(draw.tokens.numpy(), minlength=7)
    assert counts[p == 0].sum() == 0
    assert stats.chisquare(counts[p > 0], 20_000 * p[p > 0]).pvalue > 1e-3


VALUES = st.one_of(
    st.integers(-40, 40).map(lambda i: i / 4),
    st.sampled_from([-3e38, -1e30, -1e4, 1e-30, 1e-3, 0.0, 3.0, -INF]),
    st.integers(-100, 30).map(lambda e: -(2.0**e)),
)


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(VALUES, min_size=1, max_size=700),
    repeat=st.integers(1, 5),
    top_k=st.integers(0, 800),
    top_p=st.sampled_from([1.0, 0.99, 0.7, 0.2, 1e-6]),
    temperature=st.sampled_from([1.0, 0.01, 30.0, 1e30]),
    u=st.floats(0, 1, exclude_max=True),
)
def test_filters_hold_on_any_distribution(
    values: list[float], repeat: int, top_k: int, top_p: float, temperature: float, u: float
) -> None:
    z = np.array([2.0, *values] * repeat, dtype=np.float32)
    case = Case([z], [1.0], top_k=top_k, top_p=top_p, temperature=temperature)
    for backend in BACKENDS:
        assert_draws([case], np.array([u]), None, run([case], np.array([u]), None, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_does_not_depend_on_the_other_rows(backend: str) -> None:
    rng = np.random.default_rng(3)
    cases = [random_case(rng, (2100, 2111), 3.0) for _ in range(9)]
    uniforms = rng.random(9)
    together = run(cases, uniforms, None, backend)
    order = rng.permutation(9)
    shuffled = run([cases[i] for i in order], uniforms[order], None, backend)
    assert torch.equal(shuffled.tokens, together.tokens[order])
    for row, case in enumerate(cases):
        alone = run([case], uniforms[[row]], None, backend)
        assert alone.tokens[0] == together.tokens[row]
        if (
            backend == "cpu"
        ):  # torch's own reductions may differ in the last bit from one batch size to another
            assert torch.equal(alone.logprobs[:, 0], together.logprobs[:, row])
            assert torch.equal(shuffled.logprobs, together.logprobs[:, order])


def test_the_number_of_threads_changes_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    width = 300_000  # enough for one row to be shared between threads
    logits = [torch.randn(1, width, generator=g) * 4 for _ in range(2)]
    threads = torch.get_num_threads()
    for top_p in (1.0, 0.9):
        rows = SamplingRows(
            torch.ones(1),
            torch.zeros(1, dtype=torch.int64),
            torch.full((1,), top_p),
            torch.zeros(1),
            torch.full((1,), 1e-6),
        )
        draws = []
        try:
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                u = torch.full((1,), 0.37, dtype=torch.float64)
                draws.append(
                    contrast_and_sample(logits, torch.tensor([[1.3], [-0.3]]), rows, u, backend="cpu")
                )
        finally:
            torch.set_num_threads(threads)
        assert len({int(d.tokens) for d in draws}) == 1
        assert all(torch.equal(d.logprobs, draws[0].logprobs) for d in draws)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_and_strided_logits_are_read_in_place(backend: str) -> None:
    rng = np.random.default_rng(4)
    store = torch.tensor(rng.normal(size=(2, 3, 40)), dtype=torch.float32)
    rows = SamplingRows(
        torch.ones(2), torch.zeros(2, dtype=torch.int64), torch.ones(2), torch.zeros(2), torch.zeros(2)
    )
    vocabulary = torch.ones(30, dtype=torch.bool)
    u = torch.tensor([0.2, 0.9], dtype=torch.float64)
    weights = torch.tensor([[1.5, 1.0], [-0.5, 0.0]])
    views = [store[:, -1], store[:, 0, :33]]
    strided = contrast_and_sample(views, weights, rows, u, vocabulary, backend=backend)
    copied = contrast_and_sample([v.clone() for v in views], weights, rows, u, vocabulary, backend=backend)
    assert torch.equal(strided.tokens, copied.tokens)
    assert torch.equal(strided.logprobs, copied.logprobs)
    turned = contrast_and_sample(
        [v.T.contiguous().T for v in views], weights, rows, u, vocabulary, backend=backend
    )
    assert torch.equal(turned.tokens, copied.tokens)


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_takes_the_lowest_of_equal_ids(backend: str) -> None:
    z = np.array([1.0, 3.0, 3.0, 0.0, 3.0])
    draw = run(
        [Case([z], [1.0], 0.0), Case([z], [1.0], 0.0, forbidden=[1, 7, -1])],
        np.array([0.9, 0.9]),
        None,
        backend,
    )
    assert draw.tokens.tolist() == [1, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_minus_infinity_masks_under_any_nonzero_weight_and_is_ignored_under_zero(backend: str) -> None:
    dead = np.array([0.0, -INF, 0.0, 0.0])
    live = np.array([0.0, 9.0, 0.0, 0.0])
    uniforms = np.linspace(0, 0.999, 50)
    boosted = run([Case([live, dead], [1.5, -0.5])] * 50, uniforms, None, backend)
    assert 1 not in boosted.tokens.tolist()
    ignored = run([Case([live, dead], [1.0, 0.0])] * 50, uniforms, None, backend)
    assert ignored.tokens.tolist().count(1) >= 49  # softmax gives it 0.9996
    assert ignored.logprobs[1][ignored.tokens == 1].eq(-INF).all()
    above = np.array([0.0, INF, 0.0, 0.0])
    assert int(run([Case([live, above], [1.0, 0.0], 0.0)], np.zeros(1), None, backend).tokens) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_plausibility_is_relative_to_what_may_be_sampled(backend: str) -> None:
    base = np.array([10.0, 2.0, 1.5, -5.0])
    case = Case([base, np.zeros(4)], [1.0, -1.0], plausibility=0.5, forbidden=[0])
    draw = run([case] * 20, np.linspace(0, 0.99, 20), None, backend)
    assert set(draw.tokens.tolist()) == {1, 2}
    np.testing.assert_allclose(draw.logprobs[2][draw.tokens == 1], np.log(1 / (1 + np.exp(-0.5))), rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("case", "message"), BAD)
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.5}, {"plausibility": 0.1}], ids=str)
def test_a_row_that_cannot_be_sampled_is_named(backend: str, case: Case, message: str, filters: dict) -> None:
    good = Case([np.zeros(3)], [1.0])
    with pytest.raises(EngineError, match=message):
        run([good, Case(**{**vars(case), **filters}), good], np.zeros(3), None, backend)


def test_arguments_that_do_not_fit_are_named() -> None:
    z = torch.zeros(2, 5)
    rows = SamplingRows(
        torch.ones(2), torch.zeros(2, dtype=torch.int64), torch.ones(2), torch.zeros(2), torch.zeros(2)
    )
    u = torch.zeros(2, dtype=torch.float64)
    one = torch.ones(1, 2)
    for args, message in [
        (([], one, rows, u), "was given no logits"),
        (([z.half()], one, rows, u), r"term 0 are \(2, 5\) torch.float16; expected \(2, V\) torch.float32"),
        (([z, z[:1]], torch.ones(2, 2), rows, u), r"term 1 are \(1, 5\)"),
        (([z], one, rows, u, torch.ones(6, dtype=torch.bool)), "6 ids but term 0 has only 5 logits"),
        (([z], torch.ones(2), rows, u), r"weights are \(2,\); expected \(terms, rows\) = \(1, 2\)"),
        (([z], one, rows, u.float()), r"uniforms are \(2,\) torch.float32; expected \(2,\) torch.float64"),
        (([z], one, SamplingRows(**{**vars(rows), "min_p": u[:1]}), u), r"min_p is \(1,\); expected \(2,\)"),
        (([z], one, rows, u, None, [(2, [0])]), "forbidden has the row 2, and there are 2 rows"),
    ]:
        with pytest.raises(EngineError, match=message):
            contrast_and_sample(*args)
    with pytest.raises(
        EngineError, match="backend 'cuda' is unknown; expected one of auto, reference, cpu, triton"
    ):
        contrast_and_sample([z], one, rows, u, backend="cuda")  # type: ignore[arg-type]


def test_a_raw_sample_is_packed_without_loss() -> None:
    tokens = torch.tensor([0, 262_143, 2**31 + 1])
    logprobs = torch.tensor([[-0.1, -math.inf, math.nan], [-1e-30, -3e38, 0.0], [-1.1, -2.2, -3.3]])
    status = torch.tensor([0, 3, 5], dtype=torch.int32)
    outcome = RawSample(tokens, logprobs, status)
    found = unpacked(packed(outcome))
    for name in ("tokens", "logprobs", "status"):
        one, other = getattr(found, name), getattr(outcome, name)
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert on_host(outcome) is outcome
