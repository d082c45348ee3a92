"""Prompts that a model cannot read: an error that names the option, or skipped, counted and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eddecode.audit.evidence.gather import gather
from eddecode.audit.policy import Policy
from eddecode.audit.report.markdown import markdown_report
from eddecode.audit.store.store import Store
from eddecode.errors import ContextError
from helpers.stub_runs import PROMPTS, config, run
from helpers.stub_sampler import StubSampler


class ShortSampler(StubSampler):
    """Reads prompts of 40 characters."""

    def too_long(self, prompts: Any, params: Any) -> dict[int, Any]:
        return {
            i: ContextError("the base model reads at most 40") for i, p in enumerate(prompts) if len(p) > 40
        }

    def as_completed(self, prompts: Any, params: Any) -> Any:

        if found := self.too_long(prompts, params):
            index, error = next(iter(found.items()))
            error.prompt_index = index
            raise error
        return super().as_completed(prompts, params)


class IdleSampler(ShortSampler):
    """Fails where a finished run asks it for anything."""

    def too_long(self, prompts: Any, params: Any) -> dict[int, Any]:
        raise AssertionError(f"{len(prompts)} prompts are looked at again")


def test_prompts_that_are_too_long_are_skipped_counted_and_named(tmp_path: Path) -> None:
    prompts = [PROMPTS[0], "x" * 41, *PROMPTS[1:], "y" * 90]
    summary = run(config(tmp_path / "run", prompts=prompts, skip_too_long=True), sampler=ShortSampler())
    plain = run(config(tmp_path / "plain"), sampler=ShortSampler())
    assert summary.prompts == plain.prompts == 12
    assert [entry.rates for entry in summary.conditions] == [entry.rates for entry in plain.conditions]
    (note,) = [note for note in summary.notes if "skipped" in note]
    assert note.startswith("2 of 14 prompts were skipped, since they are longer")
    assert "(prompts 1, 13)" in note
    assert note in markdown_report(summary)
    with Store.read(tmp_path / "run") as store:
        assert (store.count(), store.expected(), store.missing()) == (180, 180, 0)
        assert store.skipped() == dict.fromkeys((1, 13), "aligned: the base model reads at most 40")
    again = run(config(tmp_path / "run", prompts=prompts, skip_too_long=True), sampler=IdleSampler())
    assert again == summary
    strict = {c.name: c for c in gather(tmp_path / "run", Policy(max_harm_rate=0.9)).checks}
    assert strict["skipped"].word == "inconclusive"
    lax = {c.name: c for c in gather(tmp_path / "run", Policy(max_harm_rate=0.9, max_skipped=0.2)).checks}
    assert lax["skipped"].word == "pass"
    assert "skipped" not in {c.name for c in gather(tmp_path / "plain", Policy(max_harm_rate=0.9)).checks}


def test_without_the_option_they_are_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ContextError, match=r"prompt 1 under condition aligned: .*--skip-too-long"):
        run(config(tmp_path / "run", prompts=["a", "x" * 41]), sampler=ShortSampler())
    with pytest.raises(ContextError, match="all 2 prompts are too long; the first, under condition aligned"):
        run(
            config(tmp_path / "all", prompts=["x" * 41, "y" * 41], skip_too_long=True), sampler=ShortSampler()
        )
    assert not (tmp_path / "all").exists()
