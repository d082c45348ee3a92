"""Penalties on repeated tokens: transformers' own for one model, its processor on the contrast, and formulas."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from eddecode import Access, ModelPair, Sampler, SamplingParams
from eddecode.engine import sequence as sequence_module
from eddecode.errors import ParamsError
from eddecode.outputs import Completion
from eddecode.sampling.device_penalties import DevicePenalties
from eddecode.sampling.penalties import PenalizedText, penalty_term
from helpers import decoding, tiny
from helpers.graphs import captured_sampler

NEW = 16
KINDS: list[dict[str, float]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.8},
    {"repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 0.3},
]
ALPHAS = (0.0, -1.0, 0.6, 2.0, -0.4)


@torch.inference_mode()
def naive(models: Any, prompts: Any, alpha: float, penalties: dict[str, float], count: int) -> list[int]:
    """Greedy, both models recomputed for every token, with transformers' processor on the contrast."""
    made: list[int] = []
    weights = (1 + alpha, -alpha)
    read = [i for ids, weight in zip(prompts, weights, strict=True) if weight for i in ids]
    processor = RepetitionPenaltyLogitsProcessor(penalties.get("repetition_penalty", 1.0))
    for _ in range(count):
        z = [
            m(input_ids=torch.tensor([[*ids, *made]])).logits[:, -1]
            for m, ids in zip(models, prompts, strict=True)
        ]
        scores = sum(weight * one for weight, one in zip(weights, z, strict=True) if weight)
        scores = processor(torch.tensor([[*read, *made]]), scores)
        for token, times in Counter(made).items():
            scores[0, token] -= penalties.get("presence_penalty", 0) + times * penalties.get(
                "frequency_penalty", 0
            )
        made.append(int(scores.argmax()))
    return made


@pytest.mark.parametrize("penalties", KINDS, ids=str)
def test_greedy_tokens_are_those_of_the_definition(penalties: dict[str, float]) -> None:
    sampler, prompts = decoding.sampler(), decoding.mixed_prompts(5)
    params = [
        SamplingParams(alpha=alpha, temperature=0.0, max_new_tokens=NEW, ignore_eos=True, **penalties)
        for alpha in ALPHAS
    ]
    done = sampler.generate(prompts, params)
    plain = sampler.generate(
        prompts, [SamplingParams(alpha=a, temperature=0.0, max_new_tokens=NEW) for a in ALPHAS]
    )
    assert decoding.tokens(done) != decoding.tokens(plain)
    for completion, prompt, alpha in zip(done, prompts, ALPHAS, strict=True):
        assert completion.token_ids == naive(sampler.pair.models, prompt.ids, alpha, penalties, NEW), alpha


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_one_model_alone_is_transformers_generate(alpha: float) -> None:
    pair, prompts = decoding.pair("qwen2"), decoding.mixed_prompts(3)
    params = SamplingParams(
        alpha=alpha, temperature=0.0, repetition_penalty=1.4, max_new_tokens=NEW, suppress_eos=True
    )
    model = pair.models[0 if alpha == 0 else 1]
    for completion, prompt in zip(Sampler(pair).generate(prompts, params), prompts, strict=True):
        ids = torch.tensor([prompt.ids[0 if alpha == 0 else 1]])
        expected = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, repetition_penalty=1.4, max_new_tokens=NEW,
            min_new_tokens=NEW, pad_token_id=0,
        )  # fmt: skip
        assert completion.token_ids == expected[0, ids.shape[1] :].tolist()


def mixed() -> tuple[list[Any], list[SamplingParams]]:
    """Requests with penalties and without, sampled and greedy, with filters and limits of access."""
    kinds: list[dict[str, Any]] = [
        {"alpha": 0.5, "repetition_penalty": 1.3},
        {"alpha": 0.5},
        {"alpha": -1.0, "frequency_penalty": 1.0, "top_p": 0.9},
        {"alpha": 1.0, "temperature": 0.0, "repetition_penalty": 1.2, "presence_penalty": 0.4},
        {"alpha": 0.0, "top_k": 9, "plausibility": 0.01},
        {"alpha": 1.0, "repetition_penalty": 1.5, "access": Access(top_k=8)},
        {"alpha": 0.3, "presence_penalty": 2.0, "min_new_tokens": 4, "suppress_tokens": (5, 6)},
    ]
    params = [
        SamplingParams(seed=i, max_new_tokens=6 + 2 * i, n=1 + i % 2, **kind) for i, kind in enumerate(kinds)
    ]
    return [decoding.prompt(i, 3 + i, 4 + 3 * i, 24) for i in range(len(kinds))], params


@cache
def alone() -> list[Completion]:
    """One request after the other."""
    sampler = Sampler(decoding.pair(vocab=24))
    return [row for p, q in zip(*mixed(), strict=True) for row in sampler.generate(p, q)]


@pytest.mark.parametrize(
    "options", [{"max_slots": 3}, {"speculation": "base"}, {"speculation": "ngram"}], ids=str
)
def test_a_completion_depends_on_its_request_alone(options: dict[str, Any]) -> None:
    """Whatever the batch mates and the drafts; a request without penalties has the tokens that it had alone."""
    expected = alone()
    together = Sampler(decoding.pair(vocab=24), **options).generate(*mixed())
    assert decoding.tokens(together) == decoding.tokens(expected)
    assert [c.text for c in together] == [c.text for c in expected]


@pytest.mark.usefixtures("on_a_tape")
@pytest.mark.parametrize("speculation", ["off", "base"])
def test_captured_steps_count_what_was_written_on_the_device(
    speculation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as rows come and go; what penalties add to the contrast is not computed between two steps."""
    pair = decoding.pair(vocab=24)
    prompts, params = mixed()
    params = [each.replace(access=None) for each in params]
    expected = Sampler(pair).generate(prompts, params)
    made = captured_sampler(pair, max_slots=3, speculation=speculation)
    on_host: list[int] = []
    term = sequence_module.penalty_term
    monkeypatch.setattr(
        sequence_module, "penalty_term", lambda *args: on_host.append(len(args[2])) or term(*args)
    )
    found = made.generate(prompts, params)
    assert decoding.tokens(found) == decoding.tokens(expected)
    assert sum(on_host) <= sum(q.n for q in params)  # of the first token alone, which follows the prompt
    for one, other in zip(found, expected, strict=True):
        assert one.implied_reward == pytest.approx(other.implied_reward, abs=1e-3)


@pytest.mark.parametrize("width", [24, 20])
def test_the_device_computes_the_term_of_the_host_to_the_bit(width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = [4 * torch.randn(3, 24, generator=generator) for _ in range(2)]
    logits[1][1, 5] = -torch.inf
    weights = torch.tensor([[1.7, 1.0, 0.0], [-0.7, 0.0, 1.0]])
    params = [
        SamplingParams(repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=-0.3),
        SamplingParams(),
        SamplingParams(repetition_penalty=0.8, frequency_penalty=0.1),
    ]
    texts = [
        PenalizedText(
            p, [decoding.ids(i, 5, 24), decoding.ids(i + 9, 4, 24)], list(decoding.ids(i + 5, 6, 24))
        )
        for i, p in enumerate(params)
    ]
    made = DevicePenalties.vacant(4, width, torch.device("cpu"))
    made.write(texts)
    rows = [torch.cat([z, z[:1]]) for z in logits]
    for more in range(3):
        found = made.term(rows, torch.cat([weights, weights[:, :1]], dim=1))
        assert torch.equal(found[:3], penalty_term(logits, weights, texts, width))
        assert not found[3].any()
        tokens = torch.tensor([more, 7, 3, 2])
        made.count(tokens, torch.tensor([1, 1, 1, 0]))
        texts = [
            PenalizedText(t.params, t.prompts, [*t.written, token])
            for t, token in zip(texts, tokens.tolist(), strict=False)
        ]


def test_ids_that_one_model_alone_has_are_penalized_where_it_decodes() -> None:
    wide = tiny.tiny_model(vocab=310, seed=1)
    with torch.no_grad():
        wide.lm_head.weight[300:305] *= 3
    own = tiny.tiny_tokenizer(extra=tuple(f"<|own {i}|>" for i in range(5)))
    pair = ModelPair.from_models(tiny.tiny_model(vocab=300), wide, tiny.tiny_tokenizer(), own)
    params = SamplingParams(alpha=-1.0, temperature=0.0, max_new_tokens=12, ignore_eos=True)
    prompt = decoding.prompt(1, 5, 5)
    free = Sampler(pair).generate(prompt, params)[0].token_ids
    held = Sampler(pair).generate(prompt, params.replace(frequency_penalty=1000.0))[0].token_ids
    assert max(free) >= 300
    assert len(set(held)) == len(held) == 12  # nothing twice


def test_the_log_probability_of_the_contrast_is_the_penalized_one() -> None:
    sampler, prompt = decoding.sampler(), decoding.prompt(0, 5, 7)
    params = SamplingParams(
        alpha=0.5, temperature=0.0, max_new_tokens=1, repetition_penalty=2.0, logprobs=True
    )
    done = sampler.generate(prompt, params)[0]
    with torch.inference_mode():
        z = [
            m(input_ids=torch.tensor([ids])).logits[:, -1]
            for m, ids in zip(sampler.pair.models, prompt.ids, strict=True)
        ]
    read = torch.tensor([[i for ids in prompt.ids for i in ids]])
    scores = RepetitionPenaltyLogitsProcessor(2.0)(read, 1.5 * z[0] - 0.5 * z[1])
    token = done.token_ids[0]
    assert done.logprobs is not None
    assert done.logprobs[0].contrast == pytest.approx(float(scores.log_softmax(-1)[0, token]), abs=1e-4)
    assert done.logprobs[0].base == pytest.approx(float(z[0].log_softmax(-1)[0, token]), abs=1e-4)


@pytest.mark.parametrize("extreme", [1e-3, 1e3])
def test_extreme_penalties_leave_numbers(extreme: float) -> None:
    params = SamplingParams(
        alpha=3.0, max_new_tokens=8, repetition_penalty=extreme, presence_penalty=1e3, frequency_penalty=-1e3
    )
    assert len(decoding.sampler().generate(decoding.prompt(0, 5, 7), params)[0].token_ids) <= 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty is 0; expected a value of at least 0.001"),
        ({"repetition_penalty": -1.2}, "repetition_penalty is -1.2; expected a value of at least"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"presence_penalty": float("inf")}, "presence_penalty is inf"),
        ({"frequency_penalty": "much"}, "frequency_penalty is 'much'"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        SamplingParams(**values)
