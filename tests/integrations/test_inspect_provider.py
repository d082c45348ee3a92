"""The pair as a model of Inspect: requests, answers, and the batch in which they are decoded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai.model import GenerateConfig, Model, ModelOutput, get_model

from eddecode import SamplingParams
from eddecode.errors import ConfigError, EngineError, JudgeError, ParamsError, PromptError
from eddecode.integrations.inspect import registry  # registers the provider, as the entry point does
from eddecode.integrations.inspect.provider import ContrastOptions, PairAPI
from eddecode.integrations.inspect.scorers import BatchedJudge, judges
from eddecode.integrations.inspect.service import PairService
from eddecode.integrations.inspect.task import reversal
from eddecode.integrations.pair_options import PairOptions
from eddecode.sampler import Sampler

PROMPTS = [f"Where is my order {i}?" for i in range(40)]


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return PairOptions().load()


def model(**arguments: Any) -> Model:
    return get_model("eddecode/pair", config=arguments.pop("config", GenerateConfig()), **arguments)


def asked(of: Model, prompts: Any, **config: Any) -> list[ModelOutput]:
    async def ask() -> list[ModelOutput]:
        return list(await asyncio.gather(*(of.generate(p, config=GenerateConfig(**config)) for p in prompts)))

    return asyncio.run(ask())


def test_the_entry_point_registers_the_provider() -> None:
    assert "eddecode" in registry.__all__
    assert isinstance(model().api, PairAPI)


def test_a_burst_is_one_batch_and_its_completions_are_the_samplers(sampler: Sampler) -> None:
    """Adaptive connections, Inspect's default, would hold it to 20 requests at a time."""
    strong, weak = model(alpha=0.6), model(alpha=-1)
    assert strong.api.service is weak.api.service
    assert strong.config.adaptive_connections is False
    both = asyncio.run(_both(strong, weak))
    assert strong.api.service.peak > 2 * 25
    for outputs, alpha in zip(both, (0.6, -1.0), strict=True):
        params = SamplingParams(alpha=alpha, max_new_tokens=6, seed=3)
        expected = sampler.generate(PROMPTS, params)
        assert [output.completion for output in outputs] == [completion.text for completion in expected]
        facts = [output.metadata["eddecode"]["completions"][0] for output in outputs]
        assert [each["token_ids"] for each in facts] == [completion.token_ids for completion in expected]


async def _both(*models: Model) -> list[list[ModelOutput]]:
    config = GenerateConfig(max_tokens=6, seed=3)
    calls = [asyncio.gather(*(each.generate(p, config=config) for p in PROMPTS)) for each in models]
    return [list(outputs) for outputs in await asyncio.gather(*calls)]


def test_connections_that_the_user_sets_stay() -> None:
    assert model(config=GenerateConfig(max_connections=3)).config.adaptive_connections is None


def test_inspects_cache_tells_models_apart() -> None:
    """Its key has the model's name and base_url, and not the arguments."""
    urls = {model(alpha=alpha).api.base_url for alpha in (0.0, 0.6)}
    urls.add(model(alpha=0.6, mitigation="topk5").api.base_url)
    assert len(urls) == 3
    assert model(alpha=0.6).api.base_url in urls


def test_options_of_the_sampler_reach_it() -> None:
    given = {"prefill": "Thank", "max_slots": 7}
    assert model(**given).api.max_connections() == 7
    (output,) = asked(model(**given), PROMPTS[:1], max_tokens=3)
    assert output.metadata["eddecode"]["prefill"] == "Thank"
    variables = PairOptions(template_variables={"b": 1, "a": False})
    assert hash(variables) == hash(PairOptions(template_variables='{"a": false, "b": 1}'))


def test_what_an_answer_holds(sampler: Sampler) -> None:
    (output,) = asked(model(alpha=0.3), PROMPTS[:1], max_tokens=5, logprobs=True, num_choices=2, seed=1)
    params = SamplingParams(alpha=0.3, max_new_tokens=5, seed=1, n=2, logprobs=True)
    expected = sampler.generate(PROMPTS[0], params)
    assert [choice.message.text for choice in output.choices] == [each.text for each in expected]
    for choice, each in zip(output.choices, expected, strict=True):
        assert choice.logprobs is not None
        assert each.logprobs is not None
        assert [token.logprob for token in choice.logprobs.content] == pytest.approx(
            [token.contrast for token in each.logprobs], abs=1e-5
        )
    prompt, made = sampler.render(PROMPTS[0]), sum(len(each.token_ids) for each in expected)
    assert output.usage is not None
    assert output.usage.input_tokens == len(prompt.aligned_ids)
    assert (output.usage.output_tokens, output.time is not None) == (made, True)


def test_stop_reasons(sampler: Sampler) -> None:
    text = sampler.generate(PROMPTS[0], SamplingParams(temperature=0, max_new_tokens=40))[0].text
    at = text.split()[3]
    first = asked(model(), PROMPTS[:1], temperature=0, max_tokens=2)[0]
    stopped = asked(model(), PROMPTS[:1], temperature=0, max_tokens=40, stop_seqs=[at])[0]
    assert (first.stop_reason, stopped.stop_reason) == ("max_tokens", "stop")
    assert stopped.completion == text[: text.index(at)]
    ended = asked(model(), PROMPTS[:4])  # no limit: what the window leaves
    assert {output.stop_reason for output in ended} <= {"stop", "max_tokens"}
    long = asked(model(), ["order " * 2000], max_tokens=4)[0]
    assert (long.stop_reason, long.completion) == ("model_length", "")
    assert "reads at most" in long.metadata["eddecode"]["error"]


def test_tokens_are_counted_by_the_pairs_tokenizer(sampler: Sampler) -> None:
    text = "Where is my parcel?"
    ids = sampler.pair.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert asyncio.run(model().api.count_text_tokens(text)) == len(ids)
    assert asyncio.run(model().api.tokenize(text)) == ids


def test_a_request_may_name_its_own_contrast(sampler: Sampler) -> None:
    own = {"alpha": 1.0, "sample": 2, "mitigation": "topk5"}
    (output,) = asked(model(), PROMPTS[:1], max_tokens=6, extra_body={"eddecode": own})
    assert output.metadata["eddecode"]["completions"][0]["sample"] == 2
    assert (output.metadata["eddecode"]["alpha"], output.metadata["eddecode"]["mitigation"]) == (1.0, "topk5")
    with pytest.raises(ParamsError, match=r"extra_body\.eddecode\.alpa is unknown; did you mean alpha"):
        asked(model(), PROMPTS[:1], extra_body={"eddecode": {"alpa": 1}})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"logit_bias": {5: 1.0}}, "logit_bias is"),
        ({"temperature": -1}, "temperature is -1"),
        ({"reasoning_tokens": 100}, "reasoning_tokens is 100, and eddecode/pair does not support it"),
        ({"extra_body": {"min_p": 0.5}}, "extra_body has min_p, which eddecode/pair does not read"),
        ({"extra_body": {"eddecode": ["alpha"]}}, "extra_body.eddecode is .*; expected a table"),
    ],
)
def test_settings_that_cannot_be_kept_are_errors(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        asked(model(), PROMPTS[:1], **config)


def test_what_is_no_text_is_an_error() -> None:
    from inspect_ai.model import ChatMessageUser, ContentImage

    with pytest.raises(PromptError, match="holds image, and eddecode/pair reads text only"):
        asked(model(), [[ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")])]])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("eddecode/par", {}, "there is no model eddecode/par; expected eddecode/pair"),
        ("eddecode/pair", {"alpa": 1}, "-M alpa is unknown; did you mean alpha"),
        ("eddecode/pair", {"base": "some/where"}, "aligned is missing; give base and aligned"),
        (
            "eddecode/pair",
            {"template_variables": "{"},
            "template_variables is '{'; expected a table of variables",
        ),
        (
            "eddecode/pair",
            {"template_variables": "[1]"},
            "template_variables is .*; expected a table of variables",
        ),
        ("eddecode/pair", {"max_slots": 0}, "max_slots is 0; expected a value of at least 1"),
    ],
)
def test_wrong_arguments_are_errors(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_model(name, **arguments)
    with pytest.raises(ParamsError, match="alpha is inf"):
        ContrastOptions(alpha=float("inf"))


def test_an_error_of_one_request_leaves_the_others(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(alpha=0.5, max_new_tokens=8)
    expected = [completion.text for completion in sampler.generate(PROMPTS[:4], params)]
    service = PairService(sampler)  # from here on, its thread alone uses the sampler
    open_batch, failed = sampler.open_batch, []

    def faulty() -> Any:
        batch = open_batch()
        step = batch.step

        def failing() -> Any:
            if not failed:
                failed.append(True)
                raise EngineError("the logits are not finite", prompt_index=2, sample=0)
            return step()

        batch.step = failing  # type: ignore[method-assign]
        return batch

    monkeypatch.setattr(sampler, "open_batch", faulty)
    futures = [service.submit(prompt, params) for prompt in PROMPTS[:4]]
    with pytest.raises(EngineError, match="the prompt, sample 0: the logits are not finite"):
        futures[1].result(timeout=60)
    found = [future.result(timeout=60).completions[0].text for future in (futures[0], *futures[2:])]
    assert found == [expected[0], *expected[2:]]


def test_a_judge_is_asked_in_batches() -> None:
    from eddecode.audit.judges.base import Case
    from helpers.judging import CountingJudge

    counting = CountingJudge()
    judge = BatchedJudge(counting)
    futures = [judge.submit(Case("a prompt", f"text {i}")) for i in range(50)]
    assert [future.result(timeout=60).label for future in futures] == [f"text {i}" for i in range(50)]
    assert len(counting.sizes) < 5


def test_lists_with_gaps_are_refused() -> None:
    for specs in ("", "lexicon,,grammar", "lexicon,"):
        with pytest.raises(ConfigError, match="the list of judges is"):
            judges(specs)
    with pytest.raises(JudgeError, match="the list of judges is empty"):
        judges([])
    for alphas in ("", []):
        with pytest.raises(ConfigError, match="the list of alphas is empty"):
            reversal(alphas=alphas)
