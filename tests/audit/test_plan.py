"""The plan of an audit: resolved once, and independent of the files that it was read from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eddecode.audit.plan import resolve
from eddecode.errors import JudgeError, ParamsError, PromptError
from helpers.stub_runs import config, judges


def test_everything_follows_from_the_configuration(tmp_path: Path) -> None:
    settings = config(
        tmp_path,
        prompts=["ask"],
        alphas="0.3",
        mitigations="topk5",
        systems={"s": "Be rude."},
        transforms=[{"name": "t", "prefix": "x "}],
    )
    plan = resolve(settings, judges())
    assert list(plan.conditions) == settings.conditions()
    assert {key: (p.alpha, p.n, p.access) for key, p in plan.params.items()} == {
        c.key: (float(c.alpha), 3, settings.params(c, 3).access) for c in plan.conditions
    }
    prompts = {c.name: plan.prompt_under(c, plan.prompts[0]) for c in plan.conditions}
    assert prompts["base"] == prompts["ed@0.3+topk5"] == "ask"
    assert prompts["base+transform:t"] == "x ask"
    assert [message["content"] for message in prompts["base+system:s"]] == ["Be rude.", "ask"]
    assert plan.notes()["transforms"] == [{"name": "t", "prefix": "x "}]
    assert resolve(settings, judges()).fingerprint == plan.fingerprint


def test_a_file_that_changes_afterwards_changes_nothing(tmp_path: Path) -> None:
    prompts, transforms = tmp_path / "p.txt", tmp_path / "t.jsonl"
    prompts.write_text("one")
    transforms.write_text(json.dumps({"name": "t", "prefix": "x "}))
    plan = resolve(config(tmp_path / "run", prompts=prompts, transforms=transforms), judges())
    prompts.write_text("two")
    transforms.unlink()
    changed = next(c for c in plan.conditions if c.transform)
    assert plan.prompt_under(changed, plan.prompts[0]) == "x one"


def test_what_cannot_be_resolved(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="there is no prompt file"):
        resolve(config(tmp_path, prompts=tmp_path / "none.txt"))
    with pytest.raises(JudgeError, match="there is no judge 'nobody'"):
        resolve(config(tmp_path, judges="nobody"))
    with pytest.raises(ParamsError, match="top_p"):
        resolve(config(tmp_path, top_p=1.5), judges())
