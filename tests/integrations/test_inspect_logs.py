"""Logs of Inspect: of `inspect eval` in a process of its own, runs as logs and back, and what the gate decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log, write_eval_log
from inspect_ai.scorer import Score

from eddecode import SamplingParams
from eddecode.audit.gate import Policy, judge_run
from eddecode.errors import ConfigError
from eddecode.integrations.inspect import import_logs as import_logs_module
from eddecode.integrations.inspect.export_logs import export_logs
from eddecode.integrations.inspect.import_logs import import_logs
from eddecode.integrations.pair_options import PairOptions
from helpers.stub_runs import config, run
from helpers.stub_sampler import StubSampler

POLICY = Policy(max_reversal=0.5)
ALPHAS = (-1, 0, 0.6)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    """The commands of docs/integrations.md draw those of an imported run."""
    monkeypatch.setattr(import_logs_module, "write_curve", lambda *_: [])


@pytest.fixture(scope="module")
def logs(documented: Any) -> dict[float, EvalLog]:
    """α → log, of the first command of docs/integrations.md, which evaluates three models."""
    found = [read_eval_log(path) for path in sorted((documented.folder / "logs").glob("*.eval"))]
    return {log.eval.model_args["alpha"]: log for log in found}


def test_inspect_evals_completions_are_the_samplers(logs: dict[float, EvalLog]) -> None:
    sampler = PairOptions().load()
    assert set(logs) == set(ALPHAS)
    for alpha, log in logs.items():
        assert (log.status, len(log.samples or [])) == ("success", 20)
        params = SamplingParams(alpha=alpha, temperature=0.7, max_new_tokens=48, seed=3, n=2)
        texts = [str(sample.input) for sample in log.samples or [] if sample.epoch == 1]
        expected = {(texts[c.prompt_index], c.sample + 1): c for c in sampler.generate(texts, params)}
        for sample in log.samples or []:
            own = expected[str(sample.input), sample.epoch]
            assert sample.output.completion == own.text
            assert sample.model_usage["eddecode/pair"].output_tokens == len(own.token_ids)
    firsts = [[s.output.completion for s in log.samples or [] if s.epoch == 1] for log in logs.values()]
    seconds = [[s.output.completion for s in log.samples or [] if s.epoch == 2] for log in logs.values()]
    assert firsts[2] != seconds[2]  # an epoch is a sample with random numbers of its own


def test_its_scores_are_those_of_our_judges(logs: dict[float, EvalLog]) -> None:
    from eddecode.audit.judges import Case, make_judge, verdicts_of

    for name in ("lexicon", "grammar"):
        judge = make_judge(name)
        for log in logs.values():
            samples = log.samples or []
            verdicts = verdicts_of(judge, [Case(str(s.input), s.output.completion) for s in samples])
            assert [s.scores["judges"].value[name] for s in samples if s.scores] == [
                int(v.flag) for v in verdicts
            ]
            metrics = {score.name: score.metrics for score in log.results.scores}[name]  # type: ignore[union-attr]
            assert metrics["mean"].value == pytest.approx(sum(v.flag for v in verdicts) / len(samples))


def test_logs_of_three_alphas_are_a_run_with_a_verdict(
    logs: dict[float, EvalLog], tmp_path: Path, no_pictures: None
) -> None:
    result = import_logs([log.location for log in logs.values()], tmp_path / "run")
    assert (result.completions, result.missing) == (60, ())
    assert result.summary is not None
    assert [entry.name for entry in result.summary.conditions] == ["aligned", "base", "ed@0.6"]
    assert result.summary.identity["temperature"] == 0.7
    checks = {check.name: check.word for check in judge_run(tmp_path / "run", POLICY).evidence}
    assert (checks["finished"], checks["judged"], checks["source"]) == ("pass", "pass", "pass")
    assert checks["alpha_range"] == "inconclusive"
    with pytest.raises(ConfigError, match="holds a run already"):
        import_logs([logs[0].location], tmp_path / "run")


def test_missing_logs_are_inconclusive(logs: dict[float, EvalLog], tmp_path: Path) -> None:
    result = import_logs([logs[0.6].location], tmp_path / "run")
    assert result.summary is None
    decision = judge_run(tmp_path / "run", POLICY)
    assert decision.word == "inconclusive"
    assert "40 of 60 completions are missing" in decision.sentence


def changed(log: EvalLog, path: Path, change: Any) -> Path:
    """A copy of a log in which `change` was applied to every sample."""
    copy = log.model_copy(deep=True)
    for sample in copy.samples or []:
        change(sample)
    write_eval_log(copy, path)
    return path


def test_evidence_that_a_log_lacks_is_inconclusive(logs: dict[float, EvalLog], tmp_path: Path) -> None:
    def without_facts(sample: Any) -> None:
        del sample.output.metadata["eddecode"]["completions"]

    def without_verdicts(sample: Any) -> None:
        sample.scores = {}

    def with_other_scores(sample: Any) -> None:
        sample.scores = {"includes": Score(value="C" if sample.epoch == 1 else "I")}

    def copies(name: str, change: Any) -> list[Path]:
        return [changed(log, tmp_path / f"{name}{i}.eval", change) for i, log in enumerate(logs.values())]

    bare = import_logs(copies("bare", without_facts), tmp_path / "bare")
    assert "60 completions have no token ids, so that their length is not known" in bare.missing
    assert judge_run(tmp_path / "bare", POLICY).word in ("inconclusive", "fail")
    unjudged = copies("unjudged", without_verdicts)
    assert import_logs(unjudged, tmp_path / "unjudged").summary is None
    decision = judge_run(tmp_path / "unjudged", POLICY)
    assert (decision.word, decision.evidence[1].name) == ("inconclusive", "judged")
    judged = import_logs(unjudged, tmp_path / "judged", judges=["lexicon"])
    assert judged.summary is not None
    other = import_logs(copies("other", with_other_scores), tmp_path / "other", harm="includes")
    assert other.summary is not None
    assert other.summary.conditions[0].rates["includes"].rate == 0.5


def test_a_log_of_another_model_needs_its_condition(logs: dict[float, EvalLog], tmp_path: Path) -> None:
    log = logs[0].model_copy(deep=True)
    log.eval.model, log.eval.model_args = "hf/base", {}
    for sample in log.samples or []:
        sample.output.metadata = None
    write_eval_log(log, tmp_path / "other.eval")
    with pytest.raises(ConfigError, match="is a log of hf/base, which records no α"):
        import_logs([tmp_path / "other.eval"], tmp_path / "run")
    result = import_logs(
        [f"base={tmp_path / 'other.eval'}", logs[-1].location, logs[0.6].location], tmp_path / "run"
    )
    assert any("token ids" in sentence for sentence in result.missing)
    assert judge_run(tmp_path / "run", POLICY).word == "inconclusive"


def test_logs_that_contradict_each_other_are_refused(logs: dict[float, EvalLog], tmp_path: Path) -> None:
    def warmer(sample: Any) -> None:
        sample.output.metadata["eddecode"]["sampling"]["temperature"] = 1.0

    def longer(sample: Any) -> None:
        sample.output.choices[0].message.content += " indeed"
        sample.output.completion = sample.output.choices[0].message.text

    for name, change, message in (
        ("warm", warmer, "the logs differ in temperature: 0.7 in .*, 1.0 in"),
        (
            "long",
            longer,
            "two logs have the completion of condition ed@0.6, prompt 0, sample 0, and they differ",
        ),
    ):
        copy = changed(logs[0.6], tmp_path / f"{name}.eval", change)
        with pytest.raises(ConfigError, match=message):
            import_logs([logs[0.6].location, copy], tmp_path / name)
        assert not (tmp_path / name / "run.sqlite").exists()
    (tmp_path / "no.eval").write_text("{}")
    with pytest.raises(ConfigError, match=r"no\.eval cannot be read as a log of Inspect"):
        import_logs([tmp_path / "no.eval"], tmp_path / "run")


def test_a_run_goes_out_and_comes_back(tmp_path: Path) -> None:
    """Every figure of the summary, and the gate's decision, are the same after a journey through `.eval` logs."""
    settings = config(
        tmp_path / "run",
        mitigations="topk5",
        systems={"rude": "Be rude."},
        prompts=[{"prompt": f"where is order {i}?", "category": f"c{i % 2}"} for i in range(6)],
    )
    summary = run(settings, sampler=StubSampler())
    files = export_logs(tmp_path / "run", tmp_path / "logs")
    assert len(files) == len(summary.conditions)
    assert {Path(info.name).name for info in list_eval_logs(str(tmp_path / "logs"))} == {
        f.name for f in files
    }
    result = import_logs([tmp_path / "logs"], tmp_path / "back")
    assert result.missing == tuple(
        f"the logs have no {n}" for n in ("base", "aligned")
    )  # hub ids have no digest
    assert result.summary is not None
    found, expected = result.summary.to_dict(), summary.to_dict()
    assert found == expected
    decisions = [judge_run(tmp_path / name, POLICY) for name in ("run", "back")]
    assert decisions[0].checks == decisions[1].checks


def test_an_exported_log_has_what_inspects_viewer_shows(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    (path,) = export_logs(tmp_path / "run", tmp_path / "one.eval", ["ed@0.3"])
    log = read_eval_log(path)
    assert (log.eval.model, log.eval.model_args["alpha"]) == ("eddecode/pair", 0.3)
    assert log.results is not None
    assert set(log.results.scores[0].metrics) == {"mean", "stderr"}
    for sample in log.samples or []:
        assert [event.event for event in sample.events] == ["model", "score"]
        assert sample.model_usage["eddecode/pair"].output_tokens > 0
    again = export_logs(tmp_path / "run", tmp_path / "two.eval", ["ed@0.3"])
    assert read_eval_log(again[0]).model_dump(exclude={"location", "etag"}) == log.model_dump(
        exclude={"location", "etag"}
    )
    with pytest.raises(ConfigError, match=r"one\.eval is one file, and there is one log per condition"):
        export_logs(tmp_path / "run", tmp_path / "one.eval")
