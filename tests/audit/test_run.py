"""The audit with a stub for a sampler: conditions, keys, resuming, kills, locks, refusals."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit import AuditConfig, audit
from eddecode.audit.decode import Progress
from eddecode.audit.export.formats import export_jsonl
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError, ParamsError, StoreError
from helpers.stub_runs import PROMPTS, Interrupted, config, exported, judges, run
from helpers.stub_sampler import StubSampler

# what a run is


def test_conditions_and_their_completions(tmp_path: Path) -> None:
    summary = run(config(tmp_path / "run"))
    keys = [(c.condition, c.alpha) for c in summary.conditions]
    assert keys == [("aligned", "-1"), ("base", "0"), ("ed", "0"), ("ed", "0.3"), ("ed", "1")]
    rows = exported(tmp_path / "run")
    assert [(r["condition"], r["alpha"], r["prompt_index"], r["sample"]) for r in rows] == [
        (kind, float(alpha), index, sample)
        for kind, alpha in keys
        for index in range(12)
        for sample in range(3)
    ]
    by_key = {(r["condition"], r["alpha"], r["prompt_index"], r["sample"]): r for r in rows}
    params = config(tmp_path).params(config(tmp_path).conditions()[4], 3)
    for index in range(12):  # every completion is the stub's for that prompt, α and sample
        for sample in range(3):
            expected = StubSampler().completion(0, sample, PROMPTS[index], params)
            row = by_key["ed", 1, index, sample]
            assert (row["text"], row["token_ids"]) == (expected.text, expected.token_ids)
            assert row["base_logprob"] == expected.base_logprob
            assert row["implied_reward"] == expected.implied_reward
            assert row["verdicts"]["lexicon"]["flag"] == ("IDIOT" in expected.text)
    base, ed0 = summary.condition("base"), summary.condition("ed", 0)
    assert base.rates == ed0.rates


def test_rates_are_those_of_the_rows(tmp_path: Path) -> None:
    summary = run(config(tmp_path / "run"))
    rows = exported(tmp_path / "run")
    for entry in summary.conditions:
        mine = [r for r in rows if (r["condition"], r["alpha"]) == (entry.condition, float(entry.alpha))]
        flagged = sum("IDIOT" in r["text"] for r in mine)
        rate = entry.rates["lexicon"]
        assert (rate.flagged, rate.total, rate.prompts) == (flagged, 36, 12)
        assert entry.mean_tokens == pytest.approx(sum(len(r["token_ids"]) for r in mine) / 36)
        assert entry.mean_implied_reward == pytest.approx(
            sum(r["implied_reward"] for r in mine) / 36, abs=6e-4
        )
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["schema"] == "eddecode.summary/3"


def test_one_call_holds_all_conditions_next_to_each_other(tmp_path: Path) -> None:
    class Watching(StubSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
            self.asked = [(prompt, p.alpha, p.n) for prompt, p in zip(prompts, params, strict=True)]
            return super().as_completed(prompts, params)

    sampler = Watching()
    run(config(tmp_path / "run"), sampler=sampler)
    assert sampler.calls == [(60, 180)]
    assert sampler.asked == [(prompt, alpha, 3) for prompt in PROMPTS for alpha in (-1.0, 0.0, 0.0, 0.3, 1.0)]


def test_repeated_prompts_are_one_cluster_and_noted(tmp_path: Path) -> None:
    summary = run(config(tmp_path / "run", prompts=["a", "b", "a"], samples=1))
    rate = summary.harm_rate("base")
    assert (rate.prompts, rate.total, rate.method) == (2, 3, "wilson-clustered")
    assert "1 of 3 prompts repeat an earlier one" in summary.notes[0]


# resuming


@pytest.mark.parametrize("after", [0, 1, 63, 64, 100, 179])
def test_interrupted_and_resumed_is_the_same_run(tmp_path: Path, after: int) -> None:
    undisturbed = run(config(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "b"), sampler=Interrupted(after))
    with Store.read(tmp_path / "b") as store:
        assert store.count() == after  # nothing that was decoded is lost to Ctrl-C
    sampler = StubSampler()
    resumed = run(config(tmp_path / "b"), sampler=sampler)
    assert resumed.to_dict() == undisturbed.to_dict()
    assert (tmp_path / "a" / "summary.json").read_bytes() == (tmp_path / "b" / "summary.json").read_bytes()
    assert list(export_jsonl(tmp_path / "a")) == list(export_jsonl(tmp_path / "b"))
    assert sampler.calls[0][1] <= 180 if after < 64 else sampler.calls[0][1] < 180


def test_a_finished_run_decodes_nothing(tmp_path: Path) -> None:
    first = run(config(tmp_path / "run"))
    seen: list[Progress] = []
    again = audit(
        config(tmp_path / "run"), judges=judges(), on_progress=seen.append
    )  # no sampler: loads no model
    assert again.to_dict() == first.to_dict()
    assert seen[0] == Progress("decode", 180, 180)


def forked(folder: Path, reports: int, said: int, **wanted: Any) -> int:
    """The process id of a child that runs the audit, writes a line per report, and waits for the kill after the last.

    It is a copy of this process, so that nothing has to be imported again.
    """
    child = os.fork()
    if child:
        return child
    left = reports

    def report(progress: Progress) -> None:
        nonlocal left
        os.write(said, f"{progress.done}\n".encode())
        left -= 1
        while left <= 0:
            signal.pause()

    try:
        run(config(folder, **wanted), on_progress=report)
    finally:
        os._exit(1)


@pytest.mark.parametrize("reports", [2, 20])
def test_killed_with_sigkill_and_rerun_is_the_same_table(
    tmp_path: Path, reports: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process, killed after its n-th report; what it reported is on disk, the rerun ends in the same bytes."""
    monkeypatch.setattr("eddecode.audit.decode._COMMIT_ROWS", 64)  # a report for each group that is written
    wanted = {"prompts": [f"prompt {i}" for i in range(100)]}
    reader, writer = os.pipe()
    child = forked(tmp_path / "killed", reports, writer, **wanted)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = [pipe.readline() for _ in range(reports)]
        os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with Store.read(tmp_path / "killed") as store:
        assert int(lines[-1]) <= store.count() < 1500
    resumed = run(config(tmp_path / "killed", **wanted))
    undisturbed = run(config(tmp_path / "left-alone", **wanted))
    assert resumed.to_dict() == undisturbed.to_dict()
    assert list(export_jsonl(tmp_path / "killed")) == list(export_jsonl(tmp_path / "left-alone"))


# refusals


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"samples: 3 in the run, 4 now") as error:
        run(config(tmp_path / "run", samples=4, temperature=0.5))
    assert "temperature: 1.0 in the run, 0.5 now" in str(error.value)
    assert "seed" not in str(error.value)
    with pytest.raises(ConfigError, match=r"prompts: 12 prompts, digest .* 12 prompts, digest"):
        run(config(tmp_path / "run", prompts=[*PROMPTS[:-1], "other"]))
    with pytest.raises(ConfigError, match=r"judges: lexicon, digest \w+ in the run, lexicon, digest \w+ now"):
        run(config(tmp_path / "run"), judges=[LexiconJudge(["fool"])])
    run(config(tmp_path / "run", alphas=[0.0, "1.0", "0.30"]))  # the same, written otherwise


def test_a_changed_checkpoint_is_refused_and_a_moved_one_is_not(tmp_path: Path) -> None:
    for name in ("base", "aligned"):
        (tmp_path / "here" / name).mkdir(parents=True)
        (tmp_path / "here" / name / "config.json").write_text("{}")
        (tmp_path / "here" / name / "model.safetensors").write_bytes(b"weights of " + name.encode())

    def at(folder: str) -> Any:
        here = {"base": tmp_path / folder / "base", "aligned": tmp_path / folder / "aligned"}
        return run(AuditConfig(**here, prompts=PROMPTS, out=tmp_path / "run"))

    at("here")
    (tmp_path / "here").rename(tmp_path / "there")
    at("there")
    (tmp_path / "there" / "aligned" / "model.safetensors").write_bytes(b"Weights of aligned")
    with pytest.raises(
        ConfigError, match=r"aligned: aligned, digest \w+ in the run, aligned, digest \w+ now"
    ):
        at("there")


def test_two_processes_on_one_run(tmp_path: Path) -> None:
    class Nosy(StubSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
            with pytest.raises(
                StoreError,
                match=r"run .*run is in use: another process is writing to it; .*choose another --out",
            ):
                run(config(tmp_path / "run"))
            return super().as_completed(prompts, params)

    run(config(tmp_path / "run"), sampler=Nosy())
    run(config(tmp_path / "run"))  # and it is free afterwards


def test_nothing_is_made_for_parameters_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="top_p"):
        run(config(tmp_path / "run", top_p=1.5))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="temperature 0 makes the same completion every time"):
        config(tmp_path, temperature=0)
    with pytest.raises(ConfigError, match="samples is 0"):
        config(tmp_path, samples=0)


# the store


def test_the_store_is_append_only(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as database:
        for statement in (
            "UPDATE completion SET text = ''",
            "DELETE FROM verdict",
            "UPDATE run SET value = ''",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)


def test_text_is_data(tmp_path: Path) -> None:
    """What would end a string, a path or a line elsewhere comes back as it went in."""
    nasty = "'); DROP TABLE completion; --\x00\x1b]0;x\x07\u202e../../etc\ud7ff\U0001f600\r\n\u2028"

    class Nasty(StubSampler):
        def completion(self, *arguments: Any) -> Any:
            made = super().completion(*arguments)
            object.__setattr__(made, "text", nasty)
            return made

    run(config(tmp_path / "run", prompts=[nasty], samples=1), sampler=Nasty())
    lines = list(export_jsonl(tmp_path / "run"))
    assert all(json.loads(line)["text"] == nasty for line in lines)
    assert all(line.isascii() and line.isprintable() for line in lines)
    with Store.read(tmp_path / "run") as store:
        assert store.prompts()[0].prompt == nasty
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_no_finite_log_probability_is_null(tmp_path: Path) -> None:
    class Infinite(StubSampler):
        def completion(self, *arguments: Any) -> Any:
            made = super().completion(*arguments)
            object.__setattr__(made, "aligned_logprob", float("-inf"))
            return made

    summary = run(config(tmp_path / "run"), sampler=Infinite())
    assert summary.condition("base").mean_implied_reward is None
    row = exported(tmp_path / "run")[0]
    assert row["aligned_logprob"] is None
    assert row["implied_reward"] is None


def test_a_file_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no run in"):
        list(export_jsonl(tmp_path))
    (tmp_path / "run.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 30)
    with pytest.raises(StoreError, match="not a database; the file is damaged"):
        run(config(tmp_path))
    (tmp_path / "run.sqlite").unlink()
    with sqlite3.connect(tmp_path / "run.sqlite") as database:
        database.execute("CREATE TABLE mine (x)")
    with pytest.raises(StoreError, match="not of an audit"):
        run(config(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        run(config(tmp_path / "file" / "run"))


def test_a_run_of_a_later_schema(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="schema version 99, and this eddecode reads 2"):
        list(export_jsonl(tmp_path / "run"))


def test_validity_beside_harm(tmp_path: Path) -> None:
    from eddecode.audit.judges import Verdict

    class Short:
        name, role, identity = "short", "validity", "1"

        def __call__(self, cases: Any) -> list[Verdict]:
            return [
                Verdict(1.0, True, "valid") if len(c.prompt) % 2 else Verdict(0.0, False, "x") for c in cases
            ]

    summary = run(config(tmp_path / "run"), judges=[*judges(), Short()])
    rows = exported(tmp_path / "run")
    for entry in summary.conditions:
        mine = [r for r in rows if (r["condition"], r["alpha"]) == (entry.condition, float(entry.alpha))]
        both = sum("IDIOT" in r["text"] and len(PROMPTS[r["prompt_index"]]) % 2 for r in mine)
        assert entry.harm_and_valid is not None
        assert entry.harm_and_valid.flagged == both
    assert summary.validity_judge == "short"
