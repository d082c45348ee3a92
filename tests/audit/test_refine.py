"""A run can be given further α's: what it holds stays, and an audit adds them where its sweep is too coarse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit import audit
from eddecode.audit.evidence.alpha_checks import proposed_alphas
from eddecode.audit.refine import refine
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError, StoreError
from helpers.scripted import FINE, RUDE, ScriptedSampler, config


def steep(i: int, alpha: float) -> tuple[str, int, str]:
    """Harm rises with α up to 0.6; beyond it, completions are too short to be text."""
    if alpha > 0.6:
        return "no", 2, "eos"
    return (RUDE if i < 100 * max(alpha, 0) / 0.6 else FINE), 12, "eos"


class Counting(ScriptedSampler):
    """Counts the completions that it was asked for."""

    asked = 0

    def as_completed(self, prompts: Any, params: Any) -> Any:
        for completion in super().as_completed(prompts, params):
            self.asked += 1
            yield completion


def test_a_grown_run_is_the_run_that_had_all_of_its_alphas_at_once(tmp_path: Path) -> None:
    sampler = Counting(steep)
    audit(config(tmp_path / "grown", alphas="0.1,0.6"), sampler=sampler)
    first = sampler.asked
    audit(config(tmp_path / "grown", alphas="0.1,0.3,0.6,1"), sampler=sampler, grow=True)
    assert sampler.asked - first == 2 * 100  # only what was missing
    audit(config(tmp_path / "whole", alphas="0.1,0.3,0.6,1"), sampler=ScriptedSampler(steep))
    grown, whole = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("grown", "whole"))
    assert {**grown, "content": ""} == {**whole, "content": ""}


def test_a_refinement_loads_the_models_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(settings: Any, model: str = "") -> ScriptedSampler:
        loaded.append(model)
        return ScriptedSampler(steep)

    monkeypatch.setattr("eddecode.audit.decode.load_sampler", load)
    monkeypatch.setattr("eddecode.audit.run.collect_environment", lambda *_, **__: {})
    refined = refine(config(tmp_path / "run", alphas="0.1,1"))
    assert len(refined.headline.candidates) > 2
    assert loaded == [""]


def test_without_growth_another_grid_is_another_run(tmp_path: Path) -> None:
    audit(config(tmp_path / "run", alphas="0.1,0.6"), sampler=ScriptedSampler(steep))
    with pytest.raises(ConfigError, match=r"alphas: 0\.1,0\.6 in the run, 0\.1,0\.3,0\.6 now"):
        audit(config(tmp_path / "run", alphas="0.1,0.3,0.6"), sampler=ScriptedSampler(steep))


@pytest.mark.parametrize("changes", [{"top_p": 0.9}, {"seed": 1}, {"alphas": "0.1,0.3"}], ids=str)
def test_what_decides_the_completions_of_a_run_does_not_grow(tmp_path: Path, changes: dict[str, Any]) -> None:
    audit(config(tmp_path / "run", alphas="0.1,0.6"), sampler=ScriptedSampler(steep))
    with pytest.raises(ConfigError, match="another configuration"):
        audit(
            config(tmp_path / "run", **{"alphas": "0.1,0.3,0.6", **changes}),
            sampler=ScriptedSampler(steep),
            grow=True,
        )


def test_a_run_that_another_process_writes_does_not_grow(tmp_path: Path) -> None:
    audit(config(tmp_path / "run", alphas="0.1,0.6"), sampler=ScriptedSampler(steep))
    with Store.open(tmp_path / "run"), pytest.raises(StoreError, match="in use"):
        audit(config(tmp_path / "run", alphas="0.1,0.3,0.6"), sampler=ScriptedSampler(steep), grow=True)


def test_what_a_killed_growth_left_is_no_obstacle(tmp_path: Path) -> None:
    audit(config(tmp_path / "run", alphas="0.1,0.6"), sampler=ScriptedSampler(steep))
    (tmp_path / "run" / "run.sqlite.grown").write_bytes(b"half of a file")
    summary = audit(config(tmp_path / "run", alphas="0.1,0.3,0.6"), sampler=ScriptedSampler(steep), grow=True)
    assert [entry.alpha for entry in summary.line if entry.condition == "ed"] == ["0.1", "0.3", "0.6"]


def test_refinement_finds_the_harm_between_two_alphas(tmp_path: Path) -> None:
    """α = 0.1 keeps the bound with little harm, α = 1 is no text: the harm in between is found by added α's."""
    coarse = audit(config(tmp_path / "coarse", alphas="0.1,1"), sampler=ScriptedSampler(steep))
    assert coarse.headline.alpha == "0.1"
    assert proposed_alphas(coarse) != []
    refined = refine(config(tmp_path / "run", alphas="0.1,1"), sampler=ScriptedSampler(steep))
    best = max(float(c.alpha) for c in refined.headline.candidates if c.state != "outside")
    assert best > 0.1
    assert refined.headline.harm is not None
    assert coarse.headline.harm is not None
    assert refined.headline.harm.value > 2 * coarse.headline.harm.value
    again = refine(config(tmp_path / "run", alphas="0.1,1"), sampler=ScriptedSampler(steep))
    assert again.to_dict() == refined.to_dict()  # the same command continues, and has nothing to add
