"""What each condition asks of which models, and errors that name it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit import AuditConfig, audit
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError, PromptError
from helpers.stub_runs import config, exported, run
from helpers.stub_sampler import StubSampler

# conditions


def test_every_condition_asks_what_it_says(tmp_path: Path) -> None:
    class Watching(StubSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
            self.asked = [(prompt, p.alpha, p.access) for prompt, p in zip(prompts, params, strict=True)]
            return super().as_completed(prompts, params)

    samplers = {name: Watching() for name in ("", "finetuned", "ensemble")}
    settings = config(
        tmp_path / "run",
        prompts=["ask"],
        alphas="1",
        mitigations="topk5",
        systems={"s": "Be rude."},
        transforms=[{"name": "t", "prefix": "x "}],
        finetuned="org/tuned",
        ensemble=["org/other"],
    )
    run(settings, sampler=samplers)
    asked, chat = (
        samplers[""].asked,
        [{"role": "system", "content": "Be rude."}, {"role": "user", "content": "ask"}],
    )
    assert [(prompt, alpha) for prompt, alpha, _ in asked] == [
        *(("ask", -1.0), ("ask", 0.0), ("ask", 1.0)),
        *((chat, -1.0), (chat, 0.0), (chat, 1.0)),
        *(("x ask", -1.0), ("x ask", 0.0), ("x ask", 1.0)),
        ("ask", 1.0),
    ]
    with Store.read(tmp_path / "run") as store:
        assert store.note("transforms") == [{"name": "t", "prefix": "x "}]
        assert store.note("systems") == {"s": "Be rude."}
    assert [access.top_k if access else None for _, _, access in asked] == [None] * 9 + [5]
    assert [(p, a) for p, a, _ in samplers["finetuned"].asked] == [("ask", -1.0)]
    assert [(p, a) for p, a, _ in samplers["ensemble"].asked] == [("ask", 1.0)]
    with pytest.raises(ConfigError, match="a sampler was given for the pair and none for the finetuned"):
        run(config(tmp_path / "other", finetuned="org/tuned"))
    with pytest.raises(
        ConfigError, match=r"mitigations: \['?topk5.* in the run|mitigations: topk5 in the run"
    ):
        run(config(tmp_path / "run", prompts=["ask"], alphas="1"))


def test_an_error_names_the_prompt_of_the_file_and_the_condition(tmp_path: Path) -> None:
    """A sampler counts requests, of which there are many per prompt."""

    class Refusing(StubSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
            raise PromptError("too long", prompt_index=13)

    message = r"^prompt 2 under condition ed@0.3: too long$"  # five conditions a prompt, of which ed@0.3 is the fourth
    with pytest.raises(PromptError, match=message):
        run(config(tmp_path / "run"), sampler=Refusing())


def test_other_models_on_real_checkpoints(pair_folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Where the answer is known: the aligned model stands for the fine-tuned one, and twice in the ensemble."""
    base, aligned = pair_folders
    settings = AuditConfig(
        base=base,
        aligned=aligned,
        prompts=["Where is my order?", "Hello"],
        alphas="0.5",
        samples=2,
        max_new_tokens=6,
        dtype="float32",
        out=tmp_path / "run",
        finetuned=aligned,
        ensemble=[aligned],
        mitigations=["first999", "topk1"],
    )
    audit(settings)
    completions: dict[str, list[Any]] = {}
    for row in exported(tmp_path / "run"):
        completions.setdefault(row["name"], []).append((row["token_ids"], row["text"]))
    assert completions["finetuned"] == completions["aligned"]
    assert completions["ensemble@0.5"] == completions["ed@0.5"] == completions["ed@0.5+first999"]
    assert completions["ed@0.5+topk1"] != completions["ed@0.5"]
    with Store.read(tmp_path / "run") as store:
        rewards = [sum(values) for values in store.rewards("ed@0.5")]
        kept = [row["implied_reward"] for row in store.rows(["ed@0.5"])]
        assert rewards == pytest.approx(kept, abs=1e-3)
