"""The contracts of the engine: exact, batch-invariant, faithful."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from eddecode.engine import scheduler as scheduler_module
from eddecode.engine import sequence as sequence_module
from eddecode.errors import EngineError
from eddecode.execution import runner as decoder_module
from eddecode.execution.factory import separate_pair_runner
from eddecode.models.pair import ModelPair
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler
from eddecode.sampling.contrast import contrast
from eddecode.sampling.params import SamplingParams
from eddecode.sampling.rng import stream_key, uniforms
from helpers import reference, tiny
from helpers.decoding import GREEDY, mixed_prompts, pair, prompt, sampler, tokens

ALPHAS = (0.0, -1.0, 0.5, 2.0, -0.5, 1.0, -2.0, 0.3)
EVERY = pytest.mark.parametrize("arch", list(tiny.ARCHITECTURES))


def mixed_params(count: int = 16, **changes: Any) -> list[SamplingParams]:
    return [GREEDY.replace(alpha=ALPHAS[i % len(ALPHAS)], **changes) for i in range(count)]


# Exact -----------------------------------------------------------------------------------------------------------


@EVERY
def test_any_alpha_is_the_naive_recomputation(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows of different α's and prompts, alone or together, read whole or in chunks."""
    prompts, params = mixed_prompts(len(ALPHAS)), mixed_params(len(ALPHAS))
    models = pair(arch).models
    expected = [
        reference.generate(models, p.ids, q.alpha, q.max_new_tokens).ids
        for p, q in zip(prompts, params, strict=True)
    ]
    assert len({token for row in expected for token in row}) > 10  # a model that says one thing shows nothing

    together = sampler(arch)
    assert tokens(together.generate(prompts, params)) == expected
    assert tokens(together.generate(prompts[7], params[7])) == [expected[7]]

    monkeypatch.setattr(decoder_module, "PREFILL_CHUNK", 5)
    monkeypatch.setattr(scheduler_module, "PREFILL_TOKENS", 64)
    assert tokens(sampler(arch).generate(prompts, params)) == expected


@EVERY
def test_alpha_0_and_minus_1_are_the_models_alone(arch: str) -> None:
    """Token for token what `model.generate` gives, the EOS included; the other model's EOS has no say."""
    base, aligned = tiny.tiny_pair_models(arch)
    prompts = [prompt(i, 3 + 7 * i, 17 - 5 * i) for i in range(4)]
    for number, (model, side) in enumerate(((base, "base_ids"), (aligned, "aligned_ids"))):
        free = [reference.generate((model, model), (getattr(p, side),) * 2, 0.0, 7).ids for p in prompts[:2]]
        model.generation_config.eos_token_id = sorted({free[0][3 + number], free[1][6]})
    made = Sampler(ModelPair.from_models(base, aligned))
    params = SamplingParams(temperature=0.0, max_new_tokens=12)
    reasons = set()
    for alpha, model, number in ((0.0, base, 0), (-1.0, aligned, 1)):
        done = made.generate(prompts, params.replace(alpha=alpha))
        eos = made.pair.eos_ids[number]
        for completion, p in zip(done, prompts, strict=True):
            assert completion.token_ids == reference.hf_greedy(model, p.ids[number], 12, eos)
            ended = completion.token_ids[-1] in eos
            assert completion.finish_reason == ("eos" if ended else "length")
            reasons.add(completion.finish_reason)
    assert "eos" in reasons


def test_between_the_models_either_ones_eos_ends_a_completion() -> None:
    base, aligned = tiny.tiny_pair_models()
    free = reference.generate((base, aligned), prompt(0, 3, 5).ids, 0.5, 10).ids
    first, second = free[4], free[7]
    for mine, theirs, length in ((first, second, 5), (second, first, 5)):
        base.generation_config.eos_token_id, aligned.generation_config.eos_token_id = mine, [theirs]
        done = Sampler(ModelPair.from_models(base, aligned)).generate(
            prompt(0, 3, 5), SamplingParams(alpha=0.5, temperature=0.0, max_new_tokens=10)
        )
        assert (done[0].token_ids, done[0].finish_reason) == (free[:length], "eos")


def test_sampled_tokens_are_the_naive_ones_under_every_filter() -> None:
    """Not the distribution alone: given the same uniforms, the same tokens, drawn in the order of the ids."""
    settings: list[dict[str, Any]] = [
        {},
        {"temperature": 0.6},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"plausibility": 0.05},
        {"temperature": 1.4, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "plausibility": 0.001},
    ]
    prompts = mixed_prompts(len(settings))
    params = [
        SamplingParams(alpha=ALPHAS[i + 1], max_new_tokens=8, ignore_eos=True, seed=9, **setting)
        for i, setting in enumerate(settings)
    ]
    done = sampler().generate(prompts, params)
    for completion, p, q, setting in zip(done, prompts, params, settings, strict=True):
        u = uniforms(stream_key(9, p.digest, 0), 0, 8)
        expected = reference.generate(pair().models, p.ids, q.alpha, 8, uniforms=u.tolist(), **setting)
        assert completion.token_ids == expected.ids, setting


# Batch-invariant -------------------------------------------------------------------------------------------------


def varied(count: int = 16) -> tuple[list[RenderedPrompt], list[SamplingParams]]:
    """Sampled requests that differ in all there is."""
    params = [
        SamplingParams(
            alpha=ALPHAS[i % len(ALPHAS)],
            temperature=(1.0, 0.7, 0.0, 1.3)[i % 4],
            top_k=(0, 20)[i % 2],
            top_p=(1.0, 0.9, 0.95)[i % 3],
            min_p=(0.0, 0.01)[i % 2],
            plausibility=(0.0, 0.001)[i // 2 % 2],
            max_new_tokens=4 + (7 * i) % 13,
            n=1 + i % 2,
            seed=i // 3,
            ignore_eos=i % 5 == 0,
        )
        for i in range(count)
    ]
    return mixed_prompts(count), params


@lru_cache(maxsize=8)
def alone(arch: str, count: int = 16) -> list[list[int]]:
    prompts, params = varied(count)
    made = sampler(arch, max_slots=1)
    return [row for p, q in zip(prompts, params, strict=True) for row in tokens(made.generate(p, q))]


@pytest.mark.parametrize("arch", ["llama", "gemma2", "mixtral"])
def test_a_completion_does_not_depend_on_its_batch(arch: str) -> None:
    count = 16 if arch == "llama" else 8
    prompts, params = varied(count)
    expected = alone(arch, count)
    settings: list[dict[str, int]] = [{"max_slots": 3}, {"max_slots": 64}]
    if arch == "llama":
        settings += [{"max_slots": 16, "memory_budget": 60_000}, {"memory_budget": 1}]
    for options in settings:
        assert tokens(sampler(arch, **options).generate(prompts, params)) == expected, options
    backwards = sampler(arch).generate(prompts[::-1], params[::-1])
    assert sorted(tokens(backwards)) == sorted(expected)


FAULTS = ["base extend", "aligned extend", "prefill", "add", "reserve", "draw"]


@pytest.mark.parametrize("fault", FAULTS)
def test_rows_that_had_to_leave_come_back_with_the_same_tokens(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out three times, at each place where it can, and whenever more than five rows run."""
    prompts, params = varied()
    expected = alone("llama")
    made = sampler(max_slots=12)
    base, aligned = made.pair.models
    target, name, which = {
        "base extend": (decoder_module.CachedModelRunner, "forward", base),
        "aligned extend": (decoder_module.CachedModelRunner, "forward", aligned),
        "prefill": (decoder_module.CachedModelRunner, "prefill", aligned),
        "add": (decoder_module.CachedModelRunner, "add", aligned),
        "reserve": (decoder_module.CachedModelRunner, "reserve", base),
        "draw": (sequence_module, "contrast_and_sample", None),
    }[fault]
    made.runner  # noqa: B018  the probe of the models comes before the shortage
    real = getattr(target, name)
    calls = iter(range(10_000))
    failed: list[int] = []

    def short(*args: Any, **kwargs: Any) -> Any:
        mine = which is None or args[0].model is which
        if mine and next(calls) in (2, 5, 9):
            failed.append(1)
            raise (torch.OutOfMemoryError("CUDA out of memory") if len(failed) % 2 else _cpu_shortage())
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, short)
    assert tokens(made.generate(prompts, params)) == expected
    assert len(failed) >= 2


def _cpu_shortage() -> RuntimeError:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")


def test_one_row_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sampler(max_slots=4)
    made.runner  # noqa: B018

    def short(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoder_module.CachedModelRunner, "forward", short)
    with pytest.raises(
        EngineError, match=r"not enough memory to decode even one request: use shorter prompts"
    ):
        made.generate(mixed_prompts(4), GREEDY)


def test_other_errors_of_torch_are_not_taken_for_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sampler()
    made.runner  # noqa: B018

    def broken(*args: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(decoder_module.CachedModelRunner, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        made.generate(mixed_prompts(2), GREEDY)


def test_calls_that_overlap_or_were_given_up_do_not_meet() -> None:
    prompts = mixed_prompts(3)
    expected = tokens(sampler().generate(prompts, GREEDY))
    made = sampler()
    given_up = made.stream(prompts[::-1], GREEDY)
    next(given_up)
    mixed = made.as_completed(prompts, GREEDY)
    first = next(mixed)
    assert tokens(made.generate(prompts, GREEDY)) == expected
    rest = sorted([first, *mixed], key=lambda completion: completion.prompt_index)
    assert tokens(rest) == expected


# Faithful --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2", "phi"])
def test_bf16_weights_cost_no_more_than_float32_logits(arch: str) -> None:
    """From the same hidden states, the head in float64 is the truth; bf16 logits would be far from it.

    A logit is a sum of d products that are exact in float32; accumulating them errs by at most d·2⁻²⁴·Σ|hᵢwᵢ|, and a
    softmax whose logits err by ε moves by at most (e^2ε − 1)/2 in total variation. A soft cap only shrinks errors.
    """
    alpha, weights = 2.0, (3.0, -2.0)
    models = [model.to(torch.bfloat16) for model in copy.deepcopy(pair(arch).models)]
    for model in models:
        model.get_output_embeddings().weight.data *= 2  # logits of a real model's size
    runner = separate_pair_runner(ModelPair.from_models(*models))
    seen: list[torch.Tensor] = []
    hooks = [
        m.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for m in models
    ]
    texts = [p.ids for p in mixed_prompts(6)]
    for text in texts:
        found, exact, rounded, epsilon = [], [], [], 0.0
        for number, model in enumerate(models):
            seen.clear()
            found.append(runner.prefill(number, [text[number]])[0].logits[None])
            hidden = seen[-1][0, len(text[number]) - 1].double()
            head = model.get_output_embeddings()
            products = head.weight.double() * hidden
            z = products.sum(-1) + (0.0 if getattr(head, "bias", None) is None else head.bias.double())
            cap = getattr(model.config, "final_logit_softcapping", None)
            z = z if cap is None else cap * torch.tanh(z / cap)
            exact.append(z.numpy())
            rounded.append(z.bfloat16().double().numpy())
            bound = (hidden.numel() + 4) * 2.0**-24 * (products.abs().sum(-1).max() + z.abs().max())
            epsilon += abs(weights[number]) * float(bound)
        truth = reference.softmax(reference.contrasted(exact, weights))
        ours = reference.softmax(contrast(found, weights)[0].double().numpy())
        worse = reference.softmax(reference.contrasted(rounded, weights))
        error = reference.total_variation(ours, truth)
        assert error <= np.expm1(2 * epsilon) / 2
        assert error < 1e-4
        assert reference.total_variation(worse, truth) > 30 * error
    for hook in hooks:
        hook.remove()
    assert alpha == -weights[1]
