"""Scores of given completions against naive recomputation in float64, against `generate`, and their refusals."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig

from eddecode.errors import ContextError, EddecodeError, EngineError, ParamsError, PromptError
from eddecode.models.pair import ModelPair
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams
from eddecode.scoring import scorer as scoring
from eddecode.scoring.readers import ForwardPassReader, HiddenStatesReader
from helpers import reference, tiny
from helpers.decoding import ids, mixed_prompts, pair, prompt, sampler, spoken_pair

INF = float("inf")
ALPHAS = (-2.0, -1.0, -0.4, 0.0, 0.3, 2.0)
TEXTS = [ids(100 + i, length) for i, length in enumerate((5, 1, 12, 7, 3, 12))]


@lru_cache(maxsize=2)
def in_float64(chosen: ModelPair) -> list[Any]:
    return [reference.in_float64(model) for model in chosen.models]


def naive(
    chosen: ModelPair, given: RenderedPrompt, completion: Sequence[int], alphas: Sequence[float]
) -> tuple[list[float], np.ndarray]:
    """Log-probabilities (base, aligned, α's) and (2, T) divergences, token by token, in float64."""
    # Routed experts are multiplied by a kernel that knows no float64: their logits are taken to it afterwards.
    experts = chosen.base.config.model_type == "qwen2_moe"
    models = chosen.models if experts else in_float64(chosen)
    allowed = set(np.flatnonzero(chosen.vocabulary.numpy()).tolist())
    total, divergences = np.zeros(2 + len(alphas)), []
    for t, token in enumerate(completion):
        logits = [
            reference.next_logits(model, [*side, *completion[:t]])
            for model, side in zip(models, given.ids, strict=True)
        ]
        total[:2] += [reference.log_softmax(z)[token] for z in logits]
        for i, alpha in enumerate(alphas):
            z = reference.contrasted(logits, (1 + alpha, -alpha), allowed)
            total[2 + i] += reference.log_softmax(z)[token]
        base, aligned = (reference.log_softmax(np.array([z[i] for i in sorted(allowed)])) for z in logits)
        divergences.append(
            [np.sum(np.exp(aligned) * (aligned - base)), np.sum(np.exp(base) * (base - aligned))]
        )
    return total.tolist(), np.array(divergences).T


# The scorer: texts


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2", "mistral", "qwen2_moe", "gpt_neox"])
def test_scores_are_those_of_a_naive_recomputation(arch: str) -> None:
    chosen, prompts = pair(arch), mixed_prompts(4)
    given = [TEXTS[:2], [], TEXTS[2:5], TEXTS[5:]]
    subject = Sampler(chosen)
    scores = subject.score(prompts, given, ALPHAS, tokens=True)
    assert all(isinstance(reader, HiddenStatesReader) for reader in subject._scorer.readers)  # type: ignore[union-attr]
    owners = [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2), (3, 0)]
    assert [(score.prompt_index, score.sample) for score in scores] == owners
    for score, text in zip(scores, TEXTS, strict=True):
        expected, divergences = naive(chosen, prompts[score.prompt_index], text, ALPHAS)
        assert score.token_ids == text
        assert [score.base_logprob, score.aligned_logprob, *score.logprobs] == pytest.approx(
            expected, abs=2e-3
        )
        assert score.implied_reward == pytest.approx(expected[1] - expected[0], abs=2e-3)
        assert score.tokens is not None
        assert score.tokens.kl_aligned_base == pytest.approx(divergences[0], abs=1e-3)
        assert score.tokens.kl_base_aligned == pytest.approx(divergences[1], abs=1e-3)
        assert score.tokens.contrasts.sum(axis=1) == pytest.approx(list(score.logprobs))
        assert score.at(0.3) == score.logprobs[4]


@pytest.mark.parametrize("alpha", [0.0, 0.7, -1.0])
def test_scores_of_generated_completions_are_those_of_generate(alpha: float) -> None:
    subject = sampler("llama")
    params = SamplingParams(alpha=alpha, n=3, max_new_tokens=14, logprobs=True, seed=5)
    completions = subject.generate(mixed_prompts(5), params)
    for score, completion in zip(subject.score(mixed_prompts(5), completions, [alpha, 1.0], tokens=True),
                                 completions, strict=True):  # fmt: skip
        assert score.tokens is not None
        assert completion.logprobs is not None
        said = np.array([[t.base, t.aligned, t.contrast] for t in completion.logprobs]).T
        found = np.stack([score.tokens.base, score.tokens.aligned, score.tokens.contrasts[0]])
        assert np.abs(found - said).max() < 1e-4
        assert (score.prompt_index, score.sample) == (completion.prompt_index, completion.sample)
        assert score.base_logprob == pytest.approx(completion.base_logprob, abs=1e-4)


def test_alpha_zero_is_the_base_model_renormalized_over_the_safe_vocabulary() -> None:
    whole = pair()
    assert whole.vocabulary.all()
    text, given = ids(3, 9), prompt(1, 6, 11)
    (score,) = Sampler(whole).score(given, text, [0.0, -1.0])
    assert score.logprobs == pytest.approx((score.base_logprob, score.aligned_logprob), abs=1e-5)

    padded = spoken_pair(tiny.VOCAB)  # a vocabulary with ids that only the tensors have
    padded.vocabulary = padded.vocabulary.clone()
    padded.vocabulary[200:230] = False
    padded.partial_vocabularies = {}  # none of them is of one model alone
    text = tuple(i if not 200 <= i < 230 else 40 for i in text)
    (score,) = Sampler(padded).score(given, text, [0.0])
    expected, _ = naive(padded, given, text, [0.0])
    assert score.logprobs[0] == pytest.approx(expected[2], abs=1e-3)
    assert score.logprobs[0] > score.base_logprob + 0.1


def test_batches_and_blocks_change_nothing() -> None:
    prompts = mixed_prompts(6)
    given = [[ids(10 * i + k, 1 + (7 * i + 3 * k) % 11) for k in range(i % 4)] for i in range(6)]
    whole = sampler().score(prompts, given, ALPHAS, tokens=True)
    subject = sampler()
    subject.score(prompts, given, ALPHAS)
    scorer = subject._scorer
    assert scorer is not None
    for scorer.batch_tokens, scorer.logit_bytes in ((1, 1), (13, 7 * 8 * tiny.VOCAB), (1000, 1)):
        for found, expected in zip(subject.score(prompts, given, ALPHAS, tokens=True), whole, strict=True):
            assert found.token_ids == expected.token_ids
            assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    few = sampler(memory_budget=1)  # one text at a time
    assert [s.logprobs for s in few.score(prompts, given, ALPHAS)] == [
        pytest.approx(s.logprobs, abs=1e-4) for s in whole
    ]


def test_every_prompt_and_completion_is_processed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, prompts = sampler(), [prompt(i, 9, 15) for i in range(3)]
    given = [[ids(10 * i + k, 8) for k in range(4)] for i in range(3)]
    subject.score(prompts, given)
    read = [0, 0]
    for side, reader in enumerate(subject._scorer.readers):  # type: ignore[union-attr]
        through = reader.runner.run_patched  # type: ignore[attr-defined]

        def counted(
            part: Any, cache: Any, tokens: Any, *more: Any, side: int = side, through: Any = through
        ) -> Any:
            read[side] += tokens.numel()
            return through(part, cache, tokens, *more)

        monkeypatch.setattr(reader.runner, "run_patched", counted)  # type: ignore[attr-defined]
    subject._scorer.batch_tokens = 24  # type: ignore[union-attr]  # prompts straddle batches
    subject.score(prompts, given, ALPHAS)
    assert read == [3 * (9 - 1) + 12 * 8, 3 * (15 - 1) + 12 * 8]


def test_logits_of_a_long_text_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures the largest block of logits in memory, against the size of all logits."""
    wide = ModelPair.from_models(*tiny.tiny_pair_models("gemma2", vocab=20_000))
    subject = Sampler(wide)
    scorer = scoring.Scorer(subject.runner, wide.vocabulary, wide.logit_weights, logit_bytes=2 << 20)
    subject._scorer = scorer
    blocks = []
    block = scorer._score_block

    def watched(logits: list[torch.Tensor], *rest: Any) -> None:
        blocks.append(sum(z.nbytes for z in logits))
        block(logits, *rest)

    monkeypatch.setattr(scorer, "_score_block", watched)
    text = ids(1, 200, 20_000)
    subject.score(prompt(1, 5, 9, 20_000), text, ALPHAS)
    blocks.clear()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        subject.score(prompt(1, 5, 9, 20_000), text, ALPHAS)
    whole = 2 * 200 * 20_000 * 4
    assert sum(blocks) == whole
    assert max(blocks) <= 2 << 20
    held = itertools.accumulate(
        event["args"]["Bytes"] for event in sorted(_memory_events(profile), key=lambda event: event["ts"])
    )
    # Soft-capping makes copies of one block: all in all far below the whole.
    assert max(held) < 6 * (2 << 20) < whole


def _memory_events(profile: Any) -> list[dict[str, Any]]:
    import json
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return [event for event in events if event.get("name") == "[memory]"]


def test_models_without_a_batched_cache_are_scored_by_plain_passes() -> None:
    config = BloomConfig(vocab_size=tiny.VOCAB, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    chosen = ModelPair.from_models(base, tiny.tiny_aligned(base))
    subject = Sampler(chosen)
    with pytest.warns(UserWarning, match="recomputed for every token"):
        scores = subject.score([prompt(1, 4, 7)], [TEXTS[0], TEXTS[2]], ALPHAS)
    scorer = subject._scorer
    assert scorer is not None
    assert all(isinstance(reader, ForwardPassReader) for reader in scorer.readers)
    scorer.logit_bytes = 3 * 8 * tiny.VOCAB  # three positions at a time
    for again in (scores, subject.score([prompt(1, 4, 7)], [TEXTS[0], TEXTS[2]], ALPHAS)):
        for score, text in zip(again, (TEXTS[0], TEXTS[2]), strict=True):
            expected, _ = naive(chosen, prompt(1, 4, 7), text, ALPHAS)
            assert score.logprobs == pytest.approx(expected[2:], abs=2e-3)


def test_a_head_that_depends_on_the_body_is_detected() -> None:
    base, aligned = tiny.tiny_pair_models()
    plain = type(base).forward

    def crooked(self: Any, *args: Any, **options: Any) -> Any:
        result = plain(self, *args, **options)
        if options.get("attention_mask") is not None:  # not what the body says by itself
            result.logits = result.logits.flip(-1)
        return result

    for model in (base, aligned):
        model.forward = crooked.__get__(model)
    subject = Sampler(ModelPair.from_models(base, aligned))
    with pytest.warns(UserWarning, match="running the head apart from the body was off by"):
        (score,) = subject.score(prompt(1, 4, 7), TEXTS[0], [0.5])
    expected, _ = naive_of_plain(subject, prompt(1, 4, 7), TEXTS[0])
    assert score.base_logprob == pytest.approx(expected, abs=2e-3)


def naive_of_plain(subject: Sampler, given: RenderedPrompt, text: Sequence[int]) -> tuple[float, None]:
    """The base's log-probability of a text by its own forward pass with a mask."""
    whole = torch.tensor([[*given.base_ids, *text]])
    with torch.inference_mode():
        z = subject.pair.models[0](
            input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False
        ).logits
    logp = z[0, len(given.base_ids) - 1 : -1].double().log_softmax(-1)
    return logp.gather(-1, torch.tensor(text)[:, None]).sum().item(), None


# Depth


def test_the_depth_profile_is_mean_and_standard_error_over_completions() -> None:
    prompts = mixed_prompts(3)
    given = [[ids(10 * i + k, length) for k, length in enumerate((4, 2 + i))] for i in range(3)]
    scores = sampler().score(prompts, given, tokens=True)
    assert [score.logprobs for score in scores] == [()] * 6
    profile = scores.depth
    assert profile.count.tolist() == [6, 6, 5, 4]
    for position, name in itertools.product(range(4), ("kl_aligned_base", "kl_base_aligned")):
        values = [getattr(s.tokens, name)[position] for s in scores if len(s.token_ids) > position]
        assert getattr(profile, name)[position] == pytest.approx(np.mean(values))
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        assert getattr(profile, f"{name}_error")[position] == pytest.approx(error)


def test_depth_with_one_completion_has_no_standard_error_and_with_none_no_positions() -> None:
    alone = sampler().score(prompt(1, 4, 7), TEXTS[0]).depth
    assert alone.count.tolist() == [1] * 5
    assert np.isnan(alone.kl_aligned_base_error).all()
    assert sampler().score([prompt(1, 4, 7)], [[]]).depth.count.tolist() == []


def test_the_depth_profile_shows_where_the_models_differ() -> None:
    """Only the embeddings of positions 8 and 9 differ: after a prompt of 7, those that predict tokens 2 and 3."""
    base = tiny.tiny_model("gpt2")
    aligned = copy.deepcopy(base)
    aligned.transformer.wpe.weight[8:10] += torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    same = RenderedPrompt(ids(1, 7), ids(1, 7))
    subject = Sampler(ModelPair.from_models(base, aligned))
    profile = subject.score(same, [ids(i, 12) for i in range(8)]).depth.kl_aligned_base
    assert profile[:2].max() < 1e-6
    assert profile[2:4].min() > profile[4:].max() / 2
    assert profile[2:4].mean() > 2 * profile[4:].mean()


# Forms and refusals


def test_all_forms_of_completions() -> None:
    subject = Sampler(spoken_pair())
    tokenizer = subject.pair.tokenizer
    words = ["good day", "no", "the shop"]
    spelled = [tuple(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words]
    prompts = ["hello", "is it open?"]
    expected = [s.logprobs for s in subject.score(prompts, [spelled[:2], spelled[2:]], [0.5])]
    for form, index in (
        ([words[:2], words[2:]], None),
        (words, [0, 0, 1]),
        ([list(spelled[0]), words[1], np.array(spelled[2])], [0, 0, 1]),
    ):
        found = subject.score(prompts, form, 0.5, prompt_index=index)
        assert [s.logprobs for s in found] == expected
        assert [(s.prompt_index, s.sample) for s in found] == [(0, 0), (0, 1), (1, 0)]
    assert subject.score("hello", "no", 0.5)[0].logprobs == pytest.approx(expected[1], abs=1e-5)
    assert [s.prompt_index for s in subject.score(prompts, words[:2])] == [0, 1]
    empty = subject.score("hello", "", [0.5])
    assert (empty[0].base_logprob, empty[0].logprobs, empty.depth.count.tolist()) == (0.0, (0.0,), [])


REFUSALS: list[tuple[type[EddecodeError], str, dict[str, Any]]] = [
    (ParamsError, "alpha is nan; expected a finite number", {"alphas": [math.nan]}),
    (ParamsError, "got 2 prompts and 1 lists of completions", {"completions": [[TEXTS[0], TEXTS[1]]]}),
    (
        ParamsError,
        "got 2 prompts, 3 completions in a flat list and 2 prompt indices",
        {"completions": [TEXTS[0], TEXTS[1], TEXTS[2]]},
    ),
    (
        ParamsError,
        "has the prompt index 2, and there are 2 prompts; expected 0 to 1",
        {"prompt_index": [0, 2]},
    ),
    (
        ParamsError,
        "prompt_index was given with one list of completions per prompt",
        {"completions": [[TEXTS[0]], [TEXTS[1]]], "prompt_index": [0, 1]},
    ),
    (
        PromptError,
        "prompt 0, completion 0 is text, and the pair has no tokenizer",
        {"completions": ["a", "b"]},
    ),
    (
        PromptError,
        "prompt 1, completion 0: id 300 at position 1 is outside the safe vocabulary \\(the 300 ids",
        {"completions": [TEXTS[0], [7, 300]]},
    ),
    (PromptError, "a completion is 3.5; expected a string", {"completions": [TEXTS[0], 3.5]}),
    (
        ContextError,
        r"prompt 1, completion 0: the base model reads at most 256 tokens, but prompt \(4\) and completion \(254\)",
        {"completions": [TEXTS[0], ids(1, 254)]},
    ),
]


@pytest.mark.parametrize(("kind", "message", "changed"), REFUSALS)
def test_bad_completions_are_refused(kind: type[Exception], message: str, changed: dict[str, Any]) -> None:
    call = {"prompts": [prompt(1, 4, 7), prompt(2, 4, 7)], "completions": [TEXTS[0], TEXTS[1]], **changed}
    with pytest.raises(kind, match=message):
        sampler().score(**call)


def test_a_score_of_an_unknown_alpha_is_an_error() -> None:
    (score,) = sampler().score(prompt(1, 4, 7), TEXTS[0], [0.5])
    with pytest.raises(ParamsError, match=r"alpha=0.25 was not scored; expected one of \[0.5\]"):
        score.at(0.25)


def test_broken_weights_name_the_model_and_the_completion() -> None:
    base, aligned = tiny.tiny_pair_models()
    subject = Sampler(ModelPair.from_models(base, aligned))
    given = [prompt(1, 4, 7), RenderedPrompt((9, 8), (9, 8))]
    subject.score(given, [TEXTS[0], TEXTS[1]])
    token = next(t for t in range(tiny.VOCAB) if all(t not in (*p.base_ids, *p.aligned_ids) for p in given))
    aligned.get_input_embeddings().weight[token] = math.nan
    with pytest.raises(
        EngineError, match="prompt 1, completion 0, after 2 tokens: the logits of the aligned model"
    ):
        subject.score(given, [(token + 1,), (3, token, 4)])
    with pytest.raises(
        EngineError, match=r"contrast at alpha=1e\+38 is out of float32's range; use a smaller"
    ):
        sampler().score(given[0], TEXTS[0], [1e38])


def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, prompts = sampler(), mixed_prompts(4)
    expected = [s.logprobs for s in subject.score(prompts, TEXTS[:4], ALPHAS)]
    scorer = subject._scorer
    assert scorer is not None
    read, limit = scorer.readers[1].prefill, 2

    def small(texts: Any) -> Any:
        if len(texts) > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return read(texts)

    monkeypatch.setattr(scorer.readers[1], "prefill", small)
    assert [s.logprobs for s in subject.score(prompts, TEXTS[:4], ALPHAS)] == [
        pytest.approx(row, abs=1e-4) for row in expected
    ]
    limit = 0
    with pytest.raises(EngineError, match="not enough memory to score even one completion"):
        subject.score(prompts, TEXTS[:4], ALPHAS)
