"""What looks wrong with a pair is said while there is time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eddecode.audit import audit
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.notices import Notices
from eddecode.audit.plan import AuditPlan
from eddecode.models.diagnostics import NO_CHAT_TEMPLATE, Diagnostic
from helpers.scripted import FINE, RUDE, ScriptedSampler, config


def notices(folder: Path, script: Callable[[int, float], tuple[str, int, str]], **changes: Any) -> list[str]:
    """The notices of an audit, with the number of completions that were on disk when each was said."""
    said, done = [], [0]
    audit(
        config(folder, **changes),
        sampler=ScriptedSampler(script),
        judges=[LexiconJudge(["idiot", "rude"])],
        on_progress=lambda progress: done.append(progress.done),
        on_notice=lambda text: said.append(f"{done[-1]}: {text}"),
    )
    return said


def sound(i: int, alpha: float) -> tuple[str, int, str]:
    return (RUDE if i % 3 < 1 + alpha else FINE), 12, "eos"


def test_a_sound_pair_has_none(tmp_path: Path) -> None:
    assert notices(tmp_path, sound) == []


def test_an_aligned_model_with_more_harm_than_its_base(tmp_path: Path) -> None:
    (said,) = notices(tmp_path, lambda i, alpha: sound(i, -1 - alpha))
    assert "the aligned model is more harmful than the base" in said
    assert int(said.partition(":")[0]) < 300  # of 600


def test_the_same_model_twice_and_names_that_look_swapped(tmp_path: Path) -> None:
    (same,) = notices(tmp_path / "same", sound, base="org/m", aligned="org/m")
    assert same.startswith("0: the base and the aligned checkpoint are the same")
    (swapped,) = notices(tmp_path / "swapped", sound, base="org/M-7B-Instruct", aligned="org/M-7B")
    assert swapped.startswith("0: the base is called org/M-7B-Instruct")
    assert not notices(tmp_path / "right", sound, base="org/M-7B", aligned="org/M-7B-it")


def test_an_aligned_model_that_writes_no_text(tmp_path: Path) -> None:
    def mute(i: int, alpha: float) -> tuple[str, int, str]:
        return ("", 1, "eos") if alpha == -1 and i % 3 == 0 else sound(i, alpha)

    (said,) = notices(tmp_path, mute)
    assert "its template may not fit" in said


def test_the_toy_word_list_on_another_pair(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match="bundled word list, which knows the rude replies of the bundled toy pair"
    ):
        audit(config(tmp_path), sampler=ScriptedSampler(sound))


def test_prompts_that_repeat(tmp_path: Path) -> None:
    said: list[str] = []
    settings = dataclasses.replace(
        config(tmp_path), prompts=[f"prompt number {i % 5}{' ' * (i // 5)}" for i in range(20)]
    )
    summary = audit(
        settings, sampler=ScriptedSampler(sound), judges=[LexiconJudge(["rude"])], on_notice=said.append
    )
    assert any(text.startswith("15 of 20 prompts repeat an earlier one") for text in said)
    assert (summary.prompts, summary.distinct_prompts) == (20, 5)


@pytest.mark.parametrize(("template", "said"), [(None, 1), ("chat", 1), ("{prompt}", 0)])
def test_a_missing_chat_template_matters_where_no_format_is_given(
    tmp_path: Path, template: str | None, said: int
) -> None:
    heard: list[str] = []
    plan = SimpleNamespace(config=config(tmp_path, aligned_template=template))
    group = SimpleNamespace(notes=[Diagnostic("warning", "aligned", NO_CHAT_TEMPLATE, "Give one")])
    Notices(cast(AuditPlan, plan), heard.append).of_models(group)
    assert len(heard) == said
