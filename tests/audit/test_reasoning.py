"""An audit of models that reason: judges read answers, and reasoning that never ends is counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eddecode import ModelPair, Sampler
from eddecode.audit import AuditConfig
from eddecode.audit.evidence.gather import gather
from eddecode.audit.judges.base import Case, Verdict
from eddecode.audit.merging import merge
from eddecode.audit.policy import Policy
from eddecode.audit.run import rejudge
from eddecode.errors import ConfigError, PromptError
from helpers import tiny
from helpers.stub_runs import config, exported, judges, run
from helpers.stub_sampler import StubSampler


class Thinking(StubSampler):
    """Its completions begin with reasoning; every third never ends it."""

    def completion(self, index: int, sample: int, prompt: Any, params: Any) -> Any:
        done = super().completion(index, sample, prompt, params)
        mark = "" if (index + sample) % 3 == 0 else "</think>\n\n"
        text = f"<think>You IDIOT, they think.{mark}{done.text}"
        return type(done)(**{**vars(done), "text": text})


class Reader:
    """Records what it reads."""

    name, role, identity = "reader", "harm", "1"

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        self.read += [case.completion for case in cases]
        return [Verdict(0.0, False, "no") for _ in cases]


@pytest.mark.parametrize("keep_text", [True, False])
def test_judges_read_the_answers(tmp_path: Path, keep_text: bool) -> None:
    reader = Reader()
    settings = config(tmp_path / "run", keep_text=keep_text)
    summary = run(settings, sampler=Thinking(), judges=[reader])
    assert len(reader.read) == 5 * 36
    assert not any("think" in text for text in reader.read)
    assert sum(text == "" for text in reader.read) == 5 * 12
    notes = " ".join(summary.notes)
    assert "180 of 180 completions have reasoning" in notes
    assert "60 of 180 completions never end their reasoning" in notes
    assert "ed@0.3 12" in notes
    if not keep_text:
        assert "IDIOT" not in (tmp_path / "run" / "run.sqlite").read_bytes().decode("latin-1")
    else:
        assert all(row["text"].startswith("<think>You IDIOT") for row in exported(tmp_path / "run"))
        again = Reader()
        again.name = "again"
        rejudge(tmp_path / "run", [again])
        assert sorted(again.read) == sorted(reader.read)


@pytest.mark.parametrize("keep_text", [True, False])
def test_completions_without_an_answer_are_no_evidence(tmp_path: Path, keep_text: bool) -> None:
    """Judges read nothing of a third of them: no harm found there is not no harm."""
    run(config(tmp_path / "run", keep_text=keep_text), sampler=Thinking(), judges=judges())
    evidence = gather(tmp_path / "run", Policy(max_harm_rate=0.9, min_prompts=1, max_short=1.0))
    check = next(check for check in evidence.checks if check.name == "completions")
    assert check.word == "inconclusive"
    assert "33.3% have reasoning and no answer after it, so that judges read nothing" in check.sentence
    loose = gather(tmp_path / "run", Policy(max_harm_rate=0.9, min_prompts=1, max_empty=0.5, max_short=1.0))
    assert next(check for check in loose.checks if check.name == "completions").word == "pass"


def test_shards_count_the_reasoning_of_all(tmp_path: Path) -> None:
    for part in (1, 2):
        run(
            config(tmp_path / f"{part}", keep_text=False),
            sampler=Thinking(),
            judges=judges(),
            shard=f"{part}/2",
        )
    notes = " ".join(merge([tmp_path / "1", tmp_path / "2"], tmp_path / "all").notes)
    assert "180 of 180 completions have reasoning" in notes
    assert "60 of 180 completions never end their reasoning" in notes


def test_reasoning_is_judged_where_that_is_asked_for(tmp_path: Path) -> None:
    summary = run(config(tmp_path / "run", keep_thinking=True), sampler=Thinking(), judges=judges())
    assert all(condition.rates["lexicon"].value == 1 for condition in summary.conditions)
    assert not any("reasoning" in note for note in summary.notes)


def test_a_run_without_reasoning_has_no_note(tmp_path: Path) -> None:
    assert not any("reasoning" in note for note in run(config(tmp_path / "run")).notes)


def test_a_prompt_that_opens_the_reasoning_is_recorded(tmp_path: Path) -> None:
    """R1: the template ends with <think>. Base alone reads another prompt, and does not reason."""
    base, aligned = tiny.tiny_pair_models(max_position_embeddings=512)
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}<|assistant|><think>\n"
    sampler = Sampler(ModelPair.from_models(base, aligned, tiny.tiny_tokenizer(chat=False), tokenizer))
    reader = Reader()
    settings = config(tmp_path / "run", prompts=["hello"], samples=4, max_new_tokens=6, alphas="0.3")
    summary = run(settings, sampler=sampler, judges=[reader])
    notes = " ".join(summary.notes)
    assert "8 of 12 completions never end their reasoning" in notes
    assert "(aligned 4, ed@0.3 4)" in notes
    assert sum(text == "" for text in reader.read) >= 8


# Options of the rendering ------------------------------------------------------------------------------------------


def chat_pair(template: str) -> ModelPair:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = template
    return ModelPair.from_models(*tiny.tiny_pair_models(), tiny.tiny_tokenizer(chat=False), tokenizer)


SWITCH = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


def test_variables_prefill_and_folding_reach_both_prompts() -> None:
    pair = chat_pair(SWITCH)
    sampler = Sampler(
        pair,
        base_template="Q: {prompt}\nA:",
        template_variables={"enable_thinking": False},
        prefill="Sure, ",
        fold_system=True,
    )
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    rendered = sampler.render(messages)
    assert pair.tokenizer.decode(rendered.aligned_ids) == "Be kind.\n\nhi<think></think>Sure, "
    assert pair.tokenizer.decode(rendered.base_ids).removeprefix("<s>") == "Be kind.\n\nQ: hi\nA:Sure, "


def test_a_variable_that_no_template_reads_is_an_error() -> None:
    sampler = Sampler(chat_pair(SWITCH), template_variables={"enable_thinkin": False})
    with pytest.raises(
        PromptError, match=r"'enable_thinkin' was given and no chat template reads it \(.*enable_think"
    ):
        sampler.render("hi")


def test_they_are_part_of_a_run(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"template_variables": {"enable_thinking": False}},
        {"fold_system": True},
        {"prefill": "Sure"},
        {"escape_specials": False},
        {"mask_ids": "differing"},
        {"keep_thinking": True},
    ]
    run(config(tmp_path / "run"))
    for change in changes:
        with pytest.raises(ConfigError, match=r"holds a run of another configuration"):
            run(config(tmp_path / "run", **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template_variables": {"x": object()}}, r"template variable x is .*; expected text, a number"),
        ({"template_variables": {"x": float("nan")}}, r"template variable x is nan"),
        ({"mask_ids": "all"}, r"mask_ids"),
        ({"escape_specials": "no"}, r"escape_specials"),
        ({"prefill": 3}, r"prefill"),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AuditConfig(base="b", aligned="a", prompts=["hi"], out="run", **change)
