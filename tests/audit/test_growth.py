"""A run grows by prompts, samples, conditions and judges; one that failed is mended, one that never began is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit import audit, rejudge
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError, EngineError, PairError
from helpers.stub_runs import PROMPTS, config, exported, run
from helpers.stub_sampler import StubSampler


def same_figures(left: Path, right: Path) -> None:
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (left, right))
    assert {**one, "content": ""} == {**other, "content": ""}
    assert exported(left) == exported(right)


@pytest.mark.parametrize(
    "more",
    [
        {"prompts": [*PROMPTS, "is it blue?", "is it red?"]},
        {"samples": 5},
        {"alphas": "0,0.3,1,2"},
        {"systems": {"rude": "Be rude."}, "mitigations": "topk5", "temperatures": "0.7"},
        {"prompts": [*PROMPTS, "is it blue?"], "samples": 4, "alphas": "0,0.3,0.6,1"},
    ],
    ids="+".join,
)
def test_what_is_added_ends_in_the_run_that_had_it_all(tmp_path: Path, more: dict[str, Any]) -> None:
    run(config(tmp_path / "grown"))
    before = {(r["name"], r["prompt_index"], r["sample"]): r for r in exported(tmp_path / "grown")}
    with pytest.raises(ConfigError, match="the same command with --grow; what is there stays"):
        run(config(tmp_path / "grown", **more))
    run(config(tmp_path / "grown", **more), grow=True)
    run(config(tmp_path / "whole", **more))
    same_figures(tmp_path / "grown", tmp_path / "whole")
    after = {(r["name"], r["prompt_index"], r["sample"]): r for r in exported(tmp_path / "grown")}
    assert {key: after[key] for key in before} == before


def test_a_pilot_of_the_first_prompts_grows_into_the_whole_run(tmp_path: Path) -> None:
    pilot = run(config(tmp_path / "run", limit=5))
    assert pilot.prompts == 5
    run(config(tmp_path / "run"), grow=True)
    run(config(tmp_path / "whole"))
    same_figures(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": 2}, "samples: 3 in the run, 2 now"),
        ({"prompts": ["other", *PROMPTS]}, "prompts: 12 prompts"),
        ({"prompts": PROMPTS[:-1]}, "prompts: 12 prompts"),
        ({"max_new_tokens": 5, "samples": 5}, "max_new_tokens: 128 in the run, 5 now"),
        ({"systems": {"s": "other text"}}, "systems: s, digest"),
    ],
    ids=str,
)
def test_what_would_be_another_run_is_refused_and_changes_nothing(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    systems = {"systems": {"s": "text"}} if "systems" in changes else {}
    run(config(tmp_path / "run", **systems))
    rows = exported(tmp_path / "run")
    with pytest.raises(ConfigError, match=reason):
        run(config(tmp_path / "run", **{**systems, **changes}), grow=True)
    assert exported(tmp_path / "run") == rows


def test_the_harm_judge_is_chosen_after_decoding(tmp_path: Path) -> None:
    later = audit(config(tmp_path / "run", judges=["later"]), sampler=StubSampler())
    assert "not judged yet" in later.notes[0]
    assert not (tmp_path / "run" / "summary.json").exists()
    chosen = rejudge(tmp_path / "run", [LexiconJudge(["idiot"])])
    assert chosen.harm_judge == "lexicon"
    assert chosen.harm_rate("base") == run(config(tmp_path / "alone")).harm_rate("base")


def test_another_harm_judge_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first = run(config(tmp_path / "run"))
    sampler = StubSampler()
    other = [LexiconJudge(["glassy"], "glass"), LexiconJudge(["idiot"])]
    grown = run(config(tmp_path / "run"), judges=other, grow=True, sampler=sampler)
    assert not sampler.calls
    assert (grown.harm_judge, grown.notes) == ("glass", first.notes)
    assert grown.harm_rate("base").flagged == 36 - first.harm_rate("base").flagged


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    broken = config(tmp_path / "run")
    with pytest.raises(PairError, match="org/base"):
        audit(broken, judges=[LexiconJudge(["idiot"])])
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(PairError):
        audit(broken, judges=[LexiconJudge(["idiot"])])
    run(config(tmp_path / "run", seed=8))  # another configuration is welcome
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_run_that_was_stopped_before_its_first_completion_binds_nobody(tmp_path: Path) -> None:
    class Stopped(StubSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "run"), sampler=Stopped())
    run(config(tmp_path / "run", seed=8))
    run(config(tmp_path / "alone", seed=8))
    same_figures(tmp_path / "run", tmp_path / "alone")


def test_fresh_starts_over(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    with pytest.raises(ConfigError, match="start over with --fresh"):
        run(config(tmp_path / "run", seed=8))
    run(config(tmp_path / "run", seed=8), fresh=True)
    run(config(tmp_path / "alone", seed=8))
    same_figures(tmp_path / "run", tmp_path / "alone")


class Overflowing(StubSampler):
    """Its logits are not finite at α = 1, for a prompt in the middle."""

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
        for completion in super().as_completed(prompts, params):
            if params[completion.prompt_index].alpha == 1 and prompts[completion.prompt_index] == PROMPTS[5]:
                raise EngineError("the logits are not finite", prompt_index=completion.prompt_index)
            yield completion


def test_an_error_of_one_condition_does_not_cost_the_others(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="prompt 5 under condition ed@1") as error:
        run(config(tmp_path / "run"), sampler=Overflowing())
    assert "without that condition and with --grow" in str(error.value)
    names = [row["name"] for row in exported(tmp_path / "run")]
    assert {name: names.count(name) for name in set(names) - {"ed@1"}} == dict.fromkeys(
        ("aligned", "base", "ed@0", "ed@0.3"), 36
    )
    assert all(row["verdicts"] for row in exported(tmp_path / "run"))


def test_a_model_that_is_missing_is_left_out_afterwards(tmp_path: Path) -> None:
    """The pair is decoded before the fine-tuned model is loaded; a mistyped path of that one costs nothing."""
    settings = {"finetuned": "org/mistyped"}
    with pytest.raises(ConfigError, match=r"kept: 180 of 216 completions"):
        run(config(tmp_path / "run", **settings), sampler={"": StubSampler()})
    mended = run(config(tmp_path / "run"), grow=True)
    assert mended.find("finetuned") is None
    run(config(tmp_path / "alone"))
    same_figures(tmp_path / "run", tmp_path / "alone")
    with Store.read(tmp_path / "run") as store:
        assert store.count() == 180
