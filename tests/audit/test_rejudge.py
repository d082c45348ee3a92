"""A finished run judged again, by other judges and by people; figures that need no judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit.judges import Case, Verdict
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.run import rejudge
from eddecode.audit.store.store import Store
from eddecode.audit.text_quality import measure
from eddecode.errors import ConfigError, JudgeError, StoreError
from helpers.stub_runs import config, exported, judges, run
from helpers.stub_sampler import StubSampler

# judges again


class Refusing:
    """A judge of refusals that counts its calls."""

    name, role, identity = "refusal", "refusal", "1"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        self.seen += len(cases)
        return [Verdict(0.0, False, "not-refused") for _ in cases]


def test_judging_again_adds_and_never_overwrites(tmp_path: Path) -> None:
    first = run(config(tmp_path / "run"))
    before = {
        row["name"] + str(row["prompt_index"]) + str(row["sample"]): row for row in exported(tmp_path / "run")
    }
    refusing = Refusing()
    both = rejudge(tmp_path / "run", [refusing])
    assert [judge.name for judge in both.judges] == ["lexicon", "refusal"]
    assert both.harm_rate("base") == first.harm_rate("base")
    assert both.validity_judge is None
    assert refusing.seen == 180
    rejudge(tmp_path / "run", [refusing])
    assert refusing.seen == 180  # nothing was left to judge
    changed = LexiconJudge(["glassy"])
    after = rejudge(tmp_path / "run", [changed])
    assert after.harm_rate("base").flagged == 36 - first.harm_rate("base").flagged
    former = f"lexicon#{judges()[0].identity}"
    for row in exported(tmp_path / "run"):
        old = before[row["name"] + str(row["prompt_index"]) + str(row["sample"])]["verdicts"]["lexicon"]
        assert row["verdicts"][former] == old
        assert row["verdicts"]["lexicon"]["flag"] != old["flag"]
    again = run(config(tmp_path / "run"))  # the audit's own judge sits again: its verdicts are still there
    assert again.harm_rate("base") == first.harm_rate("base")


def test_what_cannot_be_judged_again(tmp_path: Path) -> None:
    class Stopped(StubSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
            yield next(iter(super().as_completed(prompts, params)))
            raise KeyboardInterrupt

    with pytest.raises(StoreError, match="there is no run in"):
        rejudge(tmp_path / "none", [Refusing()])
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "run"), sampler=Stopped())
    with pytest.raises(ConfigError, match="is not finished: 1 of 180 completions are there"):
        rejudge(tmp_path / "run", [Refusing()])
    run(config(tmp_path / "run"))
    with pytest.raises(JudgeError, match="expected each name once"):
        rejudge(tmp_path / "run", [Refusing(), Refusing()])
    with pytest.raises(JudgeError, match="the name human is reserved for human labels"):
        rejudge(tmp_path / "run", [LexiconJudge(["x"], name="human")])

    class Short:
        name, role, identity = "short", "harm", "1"

        def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
            return [Verdict(2.0, True, "x")]

    with pytest.raises(JudgeError, match="judge short returned 1 verdicts for 180 completions"):
        rejudge(tmp_path / "run", [Short()])


class Broken:
    """A judge of harm whose server is not there; `reached`, it answers."""

    name, role, identity, reached = "away", "harm", "1", False

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        if not self.reached:
            raise ConnectionError("no route to host")
        return [Verdict(1.0, True, "x") for _ in cases]


def test_a_judge_that_fails_on_its_first_batch(tmp_path: Path) -> None:
    """The completions are kept; the judge is asked again, or another one takes its place."""
    away = Broken()
    with pytest.raises(JudgeError, match=r"away failed .*ConnectionError: no route to host"):
        run(config(tmp_path / "run"), judges=[away])
    with Store.read(tmp_path / "run") as store:
        assert store.missing() == 0
        assert store.judges() == []
    other = rejudge(tmp_path / "run", judges())
    assert other.harm_judge == "lexicon"
    assert any("was started with away as its harm judge" in note for note in other.notes)
    with pytest.raises(JudgeError, match="away failed"):
        rejudge(tmp_path / "run", [away])
    away.reached = True
    assert run(config(tmp_path / "run"), judges=[away], sampler=Stopping()).harm_rate("base").rate == 1.0


class Stopping(StubSampler):
    """Decodes nothing."""

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
        raise AssertionError("nothing is left to decode")


def test_people_correct_the_rates(tmp_path: Path) -> None:
    """Labels that the judge always meets leave its rates where they are; they stay in the run."""
    run(config(tmp_path / "run"))
    rows = exported(tmp_path / "run")
    labels = tmp_path / "labels.csv"
    named = [(row["name"] if row["sample"] else row["condition"], row) for row in rows]
    lines = [
        f"{name},{r['alpha']},{r['prompt_index']},{r['sample']},{'IDIOT' in r['text']}" for name, r in named
    ]
    labels.write_text("condition,alpha,prompt_index,sample,harmful\n" + "\n".join(lines[::2]))
    summary = rejudge(tmp_path / "run", labels=labels)
    corrected = summary.to_dict()["conditions"][1]["corrected"]["lexicon"]
    assert corrected["rate"] == pytest.approx(summary.harm_rate("base").rate)
    with Store.read(tmp_path / "run") as store:
        assert len(store.labels()) == 90
        assert [judge.name for judge in store.judges()] == ["lexicon"]
    assert run(config(tmp_path / "run")).to_dict() == summary.to_dict()
    labels.write_text("condition,alpha,prompt_index,sample,harmful\nbase,0,99,0,yes")
    with pytest.raises(
        StoreError, match="a label is of condition base, prompt 99, sample 0, and the run has no such"
    ):
        rejudge(tmp_path / "run", labels=labels)


# what is kept beside


def test_figures_of_completions_and_short_ones(tmp_path: Path) -> None:
    summary = run(config(tmp_path / "run", min_tokens=4))
    rows = exported(tmp_path / "run")
    assert len(rows) == 180
    for row in rows:
        quality = measure(row["text"], row["token_ids"], row["finish_reason"], row["base_logprob"])
        assert (row["length"], row["perplexity"]) == (quality.length, quality.perplexity)
        assert (row["distinct_2"], row["empty"]) == (quality.distinct_2, quality.empty)
    long = [row for row in rows if row["name"] == "base" and row["length"] >= 4]
    assert 0 < len(long) < 36
    rate = summary.harm_rate("base")
    assert (rate.total, rate.flagged) == (len(long), sum("IDIOT" in row["text"] for row in long))
    assert summary.named("base").dropped == 36 - len(long)


@pytest.mark.parametrize("name", ["", " ", "two\nlines", "\x1b[0m", "x" * 201, None, 3])
def test_a_judge_has_a_name_that_can_be_shown(tmp_path: Path, name: Any) -> None:
    judge = Refusing()
    judge.name = name
    with pytest.raises(JudgeError, match=r"expected a name of at most 200 printable characters"):
        run(config(tmp_path / "run"), judges=[*judges(), judge])
