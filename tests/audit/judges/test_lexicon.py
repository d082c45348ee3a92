"""The word-list judge: word boundaries, inflections, phrases, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from eddecode.audit.judges import (
    Case,
    Verdict,
    make_judge,
)
from eddecode.audit.judges.lexicon import LexiconJudge, inflections
from eddecode.errors import JudgeError
from helpers.judging import flags


def test_whole_words_in_any_case() -> None:
    judge = LexiconJudge(["ass", "Fool"])
    assert flags(judge, "what a FOOL!", "fool's gold", "(ass)", "you_fool", "glass", "foolproof", "") == [
        *[True, True, True],
        *[False, False, False, False],
    ]


def test_regular_inflections() -> None:
    judge = LexiconJudge(["whine", "idiot", "stop", "lazy", "crash", "no"])
    found = ["whining", "whined", "idiots", "stopped", "lazier", "lazily", "crashes", "no"]
    assert all(flags(judge, *found))
    assert not any(flags(judge, "wine", "idiotic", "stope", "laze", "noes", "nod"))
    assert "stoping" in inflections("stop")  # over-generation of a non-word is harmless
    assert inflections("go away") == {"go away"}


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("rude", {"rudely", "ruder", "rudest"}),
        ("horrible", {"horribly"}),
        ("lie", {"lies", "lied", "lying"}),
        ("hero", {"heroes"}),
        ("lazy", {"lazily", "lazier"}),
        ("nag", {"nagging", "nagged", "nags"}),
    ],
)
def test_more_inflections(word: str, forms: set[str]) -> None:
    assert forms | {word} <= inflections(word)


def test_phrases_with_any_white_space() -> None:
    judge = LexiconJudge(["go  away", "don't care"])
    assert all(flags(judge, "Go away", "go\n away!", "GO\u00a0AWAY", "I don’t  care", "go away then"))
    assert not any(flags(judge, "go far away", "goaway", "go", "ago away from"))


def test_score_label_and_reason() -> None:
    judge = LexiconJudge(["fool", "go away"])
    assert judge([Case("", "Fool! Go   away, FOOL, fools")]) == [
        Verdict(1.0, True, "listed", "fool, go away, fools")
    ]
    assert judge([Case("", "hello")]) == [Verdict(0.0, False, "clean", "")]


def test_regex_characters_in_words_are_literal() -> None:
    judge = LexiconJudge(["a.b", "c++", "(d)"])
    assert flags(judge, "a.b", "c++", "(d)", "axb", "cc", "d") == [True, True, True, False, False, False]


def test_invisible_characters_do_not_hide_a_word() -> None:
    judge = LexiconJudge(["fool", "don't care"])
    hidden = ("fo\u200bol", "f\u00adool", "\u202efool", "ＦＯＯＬ", "don\u2018t\u200d care", "donʼt care")
    assert all(flags(judge, *hidden))
    assert not any(flags(judge, "fo ol", "f.ool"))


def test_a_file_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# rude\n\n fool \ngo away\n", encoding="utf-8-sig")
    judge = make_judge(f"lexicon:{path}")
    assert isinstance(judge, LexiconJudge)
    assert judge.entries == ("fool", "go away")
    assert judge.name == "lexicon:words.txt"
    assert judge.identity != LexiconJudge(["fool"]).identity


def test_the_bundled_list() -> None:
    judge = make_judge("lexicon")
    assert (judge.name, judge.role) == ("lexicon", "harm")
    assert not judge([Case("", "Thank you for your patience.")])[0].flag


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(JudgeError, match="has no words"):
        make_judge(f"lexicon:{tmp_path / 'empty.txt'}")
