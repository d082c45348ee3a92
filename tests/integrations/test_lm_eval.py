"""lm-evaluation-harness: the pair's scores at α = 0 are those of the harness's own model, and benchmarks of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import lm_eval
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

from eddecode import RenderedPrompt, SamplingParams
from eddecode.audit import AuditConfig, audit
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.gate import Policy, judge_run
from eddecode.audit.report.html import html_report
from eddecode.cli.commands import app
from eddecode.errors import ConfigError, ContextError, ParamsError
from eddecode.integrations.lm_eval.model import PairLM, PairScores
from eddecode.integrations.lm_eval.utility import measure_run
from eddecode.integrations.pair_options import PairOptions
from eddecode.lab import bundled_pair
from eddecode.sampler import Sampler
from helpers.lm_eval_tasks import TASKS, write_tasks

TOLERANCE = 1e-4
CONTEXT = "Customer: Good evening. My carpet has not arrived.\nAgent:\n"


@pytest.fixture(autouse=True)
def _no_list_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness would ask pip for all packages (0.5 s) at every evaluation, for a part of its results unused here."""
    monkeypatch.setattr(evaluator, "add_env_info", lambda _: None)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return PairOptions(dtype="float32").load()


@pytest.fixture(scope="module")
def tasks(sampler: Sampler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    greedy = SamplingParams(temperature=0, max_new_tokens=3)
    ids = tuple(sampler.pair.base_tokenizer(CONTEXT)["input_ids"])
    likely = sampler.generate(RenderedPrompt(ids, ids), greedy)[0].text
    return write_tasks(tmp_path_factory.mktemp("tasks"), likely=likely)


def evaluated(model: Any, tasks: Path) -> dict[str, list[Any]]:
    """Task → the answers of its documents, in order."""
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    return {
        task: [answer for sample in found["samples"][task] for answer in sample["resps"]] for task in TASKS
    }


@pytest.mark.parametrize(("alpha", "side"), [(0, "base"), (-1, "aligned")])
def test_one_model_alone_scores_as_the_harness_scores_it(
    sampler: Sampler, tasks: Path, alpha: float, side: str
) -> None:
    """Log-likelihoods, multiple choice, perplexities of texts longer than the window, and greedy completions."""
    checkpoint = str(getattr(bundled_pair(), side))
    expected = evaluated(HFLM(pretrained=checkpoint, dtype="float32", device="cpu", batch_size=8), tasks)
    found = evaluated(PairLM(alpha=alpha, scores=PairScores(sampler, [alpha])), tasks)
    greedy = []
    for task in ("shop_choice", "shop_likelihood"):
        for ((ours, our_greedy),), ((theirs, their_greedy),) in zip(found[task], expected[task], strict=True):
            assert ours == pytest.approx(theirs, abs=TOLERANCE)
            assert our_greedy == their_greedy
            greedy.append(our_greedy)
    if alpha == 0:
        assert set(greedy) == {True, False}
    for (ours,), (theirs,) in zip(found["shop_rolling"], expected["shop_rolling"], strict=True):
        # The harness adds hundreds of tokens up in float32, which rounds such sums to 6e-5 each time.
        assert ours == pytest.approx(theirs, abs=TOLERANCE, rel=5e-7)
    assert found["shop_generate"] == expected["shop_generate"]


def asked(kind: Any, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_a_contrast_scores_as_the_scorer_does(sampler: Sampler) -> None:
    scores = PairScores(sampler, [0.6, 2.0])
    model = PairLM(alpha=0.6, scores=scores)
    ((found, greedy),) = model.loglikelihood([asked("loglikelihood", CONTEXT, "I am sorry.")])
    tokenizer = sampler.pair.base_tokenizer
    whole, context = (
        tokenizer(text)["input_ids"] for text in (f"{CONTEXT.rstrip()}\nI am sorry.", CONTEXT.rstrip())
    )
    prompt = RenderedPrompt(tuple(context), tuple(context))
    (expected,) = sampler.score([prompt], [whole[len(context) :]], [0.6])
    assert found == pytest.approx(expected.at(0.6))
    assert greedy == expected.is_greedy(0.6)
    ((other, _),) = PairLM(alpha=2.0, scores=scores).loglikelihood(
        [asked("loglikelihood", CONTEXT, "I am sorry.")]
    )
    assert other != found
    ((templated, _),) = PairLM(alpha=0.6, aligned_template="chat", scores=scores).loglikelihood(
        [asked("loglikelihood", CONTEXT, "I am sorry.")]
    )
    assert templated != found


def test_repeated_requests_are_samples_of_one_prompt(sampler: Sampler) -> None:
    model = PairLM(alpha=0.6, scores=PairScores(sampler, [0.6]))
    settings = {"until": ["."], "max_gen_toks": 9, "do_sample": True, "temperature": 1.0}
    found = model.generate_until([asked("generate_until", CONTEXT, settings)] * 3)
    ids = tuple(sampler.pair.base_tokenizer(CONTEXT)["input_ids"])
    params = SamplingParams(alpha=0.6, max_new_tokens=9, stop=(".",), n=3)
    assert found == [done.text for done in sampler.generate(RenderedPrompt(ids, ids), params)]


def test_what_cannot_be_kept_is_an_error(sampler: Sampler) -> None:
    model = PairLM(alpha=0.6, scores=PairScores(sampler, [0.6]))
    with pytest.raises(ParamsError, match="the task sets num_beams for generation"):
        model.generate_until([asked("generate_until", CONTEXT, {"num_beams": 4})])
    with pytest.raises(ContextError, match="a task asks for 5000 tokens, and the pair reads"):
        model.generate_until([asked("generate_until", CONTEXT, {"max_gen_toks": 5000})])
    with pytest.raises(ContextError, match="a continuation has"):
        model.loglikelihood([asked("loglikelihood", CONTEXT, " please" * 3000)])
    with pytest.raises(ConfigError, match="max_length is 0; expected at least 1"):
        PairLM(max_length=0)
    with pytest.raises(ConfigError, match="dtyp is unknown; did you mean dtype"):
        PairLM(dtyp="float32")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundled, folder = bundled_pair(), tmp_path_factory.mktemp("runs") / "run"
    audit(
        AuditConfig(
            base=bundled.base,
            aligned=bundled.aligned,
            base_template=bundled.base_template,
            prompts=["Where is my parcel?", "My clock has not arrived."],
            out=folder,
            alphas="0.6",
            max_new_tokens=6,
        )
    )
    return folder


def test_benchmarks_become_a_part_of_the_runs_report(run: Path, tasks: Path) -> None:
    arguments = ["utility", str(run), "--tasks", "shop_choice,shop_generate", "--include-path", str(tasks)]
    result = CliRunner().invoke(app, [*arguments, "--limit", "4"])
    assert result.exit_code == 0, result.output
    assert "shop_choice, acc ↑" in result.output
    summary = Summary.read(run)
    rows = {(f.condition, f.task): f for f in summary.benchmarks}
    assert set(rows) == {
        (c, t) for c in ("aligned", "base", "ed@0.6") for t in ("shop_choice", "shop_generate")
    }
    accuracy = [rows[c, "shop_choice"] for c in ("aligned", "base", "ed@0.6")]
    assert [figure.value for figure in accuracy[:2]] == [1.0, 1.0]
    assert {figure.documents for figure in accuracy} == {4}
    page = html_report(summary)
    assert "Benchmarks against α" in page
    assert "shop_choice, acc ↑" in page
    checks = {check.name: check.word for check in judge_run(run, Policy(max_reversal=0.5)).evidence}
    assert checks["summary"] == "pass"


def test_benchmarks_are_of_the_runs_models_and_of_known_tasks(run: Path, tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no task \(none given\)"):
        measure_run(run, [], include_path=tasks)
    for given, message in (
        ("", "the list of tasks is empty"),
        ("a,,b", "an empty entry"),
        ("a,a", "given twice"),
    ):
        result = CliRunner().invoke(app, ["utility", str(run), "--tasks", given])
        assert result.exit_code == 2
        assert message in result.output
    file = run / "audit.toml"
    text = file.read_text()
    file.write_text(text.replace(str(bundled_pair().base), str(bundled_pair().aligned)))
    with pytest.raises(
        ConfigError, match=r"the base model of the run was base, digest .* is aligned, digest"
    ):
        measure_run(run, ["shop_choice"], include_path=tasks)
    file.write_text(text)
