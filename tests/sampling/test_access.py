"""Access limits: the limited log-probabilities, and decoding with them."""

from __future__ import annotations

import pytest
import torch

from eddecode import EddecodeError, Sampler, SamplingParams
from eddecode.sampling.access import Access
from helpers import decoding

LOGITS = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.0, -3.0])


def test_top_k_discloses_the_largest_and_distributes_the_rest_evenly() -> None:
    full = LOGITS.log_softmax(-1)
    seen = Access(top_k=2).apply(LOGITS, 0)
    torch.testing.assert_close(seen[[0, 4]], full[[0, 4]])
    torch.testing.assert_close(seen[[1, 2, 3, 5]].exp(), full[[1, 2, 3, 5]].exp().mean().expand(4))
    torch.testing.assert_close(seen.exp().sum(), torch.tensor(1.0))


def test_an_undisclosed_token_is_never_above_a_disclosed_one() -> None:
    flat = torch.zeros(50) + torch.linspace(0, 1e-3, 50)
    for k in (1, 5, 49):
        for access in (Access(top_k=k), Access(top_k=k, decimals=1), Access(top_k=k, noise=3.0)):
            ordered = access.apply(flat, 0).sort(descending=True).values
            assert torch.equal(ordered[k:], ordered[-1:].expand(50 - k))  # all untold tokens are alike


def test_rounding_and_noise() -> None:
    full = LOGITS.log_softmax(-1)
    rounded = Access(decimals=1).apply(LOGITS, 0)
    assert torch.equal((rounded * 10).round() / 10, rounded)
    assert (rounded - full).abs().max() <= 0.05 + 1e-6
    wide = torch.zeros(40_000)
    noisy = Access(noise=0.5).apply(wide, 7) - wide.log_softmax(-1)
    assert torch.equal(noisy + wide.log_softmax(-1), Access(noise=0.5).apply(wide, 7))
    assert not torch.equal(noisy + wide.log_softmax(-1), Access(noise=0.5).apply(wide, 8))
    assert abs(noisy.mean()) < 5 * 0.5 / 200  # five standard errors of a mean of 40 000
    assert abs(noisy.std() / 0.5 - 1) < 5 / (2 * 40_000) ** 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise": -1.0}, "access noise is -1.0; expected a value of at least 0"),
        ({"top_k": -1}, "access top_k is -1; expected a value of at least 0"),
        ({"noise": float("inf")}, "access noise is inf; expected a finite number"),
        ({"noise": 1e38}, "access noise is 1e\\+38; expected a value of at most"),
        ({"decimals": 40}, "access decimals is 40; expected a value of at most 20"),
        ({"topk": 1}, r"access topk is unknown; did you mean top_k\?"),
        ({"tokens": 1.5}, "access tokens is 1.5; expected an integer"),
    ],
)
def test_bad_limits_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(EddecodeError, match=message):
        Access(**fields)  # type: ignore[arg-type]


def test_after_the_last_available_token_the_base_decodes_alone() -> None:
    sampler = Sampler(decoding.pair())
    prompt = decoding.prompt(3, 5, 8)
    greedy = SamplingParams(alpha=2.0, temperature=0, max_new_tokens=12, ignore_eos=True)
    full = sampler.generate(prompt, greedy)[0].token_ids
    none = sampler.generate(prompt, greedy.replace(access=Access(tokens=0)))[0].token_ids
    base = sampler.generate(prompt, greedy.replace(alpha=0.0))[0].token_ids
    assert none == base != full
    for m in (1, 4):
        limited = sampler.generate(prompt, greedy.replace(access=Access(tokens=m)))[0].token_ids
        assert limited[:m] == full[:m]
        after = type(prompt)((*prompt.base_ids, *limited[:m]), (*prompt.aligned_ids, *limited[:m]))
        rest = sampler.generate(after, greedy.replace(alpha=0.0, max_new_tokens=12 - m))[0].token_ids
        assert limited[m:] == rest


def test_limits_change_the_contrast_but_not_the_reported_logprobs() -> None:
    sampler = Sampler(decoding.pair())
    prompt = decoding.prompt(4, 5, 8)
    params = SamplingParams(alpha=1.0, temperature=0, max_new_tokens=10, ignore_eos=True, logprobs=True)
    limited = sampler.generate(prompt, params.replace(access=Access(top_k=1)))[0]
    assert limited.token_ids != sampler.generate(prompt, params)[0].token_ids
    model, text = sampler.pair.aligned, torch.tensor([[*prompt.aligned_ids, *limited.token_ids]])
    logprobs = model(text).logits[0].double().log_softmax(-1)
    start = len(prompt.aligned_ids) - 1
    expected = [float(logprobs[start + i, token]) for i, token in enumerate(limited.token_ids)]
    assert limited.logprobs is not None
    assert [token.aligned for token in limited.logprobs] == pytest.approx(expected, abs=1e-4)


def test_limits_that_limit_nothing_change_nothing() -> None:
    sampler = Sampler(decoding.pair())
    params = SamplingParams(alpha=0.5, max_new_tokens=10, seed=3)
    vocabulary = sampler.pair.vocabulary.numel()
    limited = params.replace(access=Access(top_k=vocabulary, tokens=10))
    prompt = decoding.prompt(5, 5, 8)
    assert sampler.generate(prompt, params)[0].token_ids == sampler.generate(prompt, limited)[0].token_ids
