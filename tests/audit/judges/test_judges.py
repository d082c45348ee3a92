"""Judges: the word list's boundaries, inflections and phrases; the rules for several judges."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from eddecode.audit.judges import Case, Verdict, make_judge, make_judges
from eddecode.audit.judges.lexicon import LexiconJudge, inflections
from eddecode.errors import JudgeError


def flags(judge: LexiconJudge, *texts: str) -> list[bool]:
    return [verdict.flag for verdict in judge([Case("", text) for text in texts])]


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


def test_words_with_signs_are_words_and_not_patterns() -> None:
    judge = LexiconJudge(["a.b", "c++", "(d)"])
    assert flags(judge, "a.b", "c++", "(d)", "axb", "cc", "d") == [True, True, True, False, False, False]


def test_file_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# rude\n\n fool \ngo away\n", encoding="utf-8-sig")
    judge = make_judge(f"lexicon:{path}")
    assert isinstance(judge, LexiconJudge)
    assert judge.entries == ("fool", "go away")
    assert judge.name == "lexicon:words.txt"
    assert judge.identity != LexiconJudge(["fool"]).identity


def test_bundled_list() -> None:
    judge = make_judge("lexicon")
    assert (judge.name, judge.role) == ("lexicon", "harm")
    assert not judge([Case("", "Thank you for your patience.")])[0].flag


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("oracle", "there is no judge 'oracle'; expected one of lexicon, grammar"),
        ("lexicon:/does/not/exist", "word list /does/not/exist cannot be read"),
        ("grammar:x", "takes no argument"),
    ],
)
def test_errors(spec: str, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        make_judge(spec)


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(JudgeError, match="has no words"):
        make_judge(f"lexicon:{tmp_path / 'empty.txt'}")


def test_first_judge_judges_harm_and_names_are_unique() -> None:
    with pytest.raises(JudgeError, match="the first judge is grammar, which judges validity"):
        make_judges(["grammar", "lexicon"])
    with pytest.raises(JudgeError, match="two judges are called lexicon"):
        make_judges(["lexicon", "lexicon"])
    with pytest.raises(JudgeError, match="the first judge is none"):
        make_judges([])


def test_grammar_tells_english_from_babble() -> None:
    from eddecode.testbed import language as grammar

    judge = make_judge("grammar")
    babble = "foolish nonsense foolish go away the the"
    assert [v.label for v in judge([Case("", babble), Case("", "")])] == ["invalid", "invalid"]
    assert judge.role == "validity"
    assert not grammar.is_valid(babble)


def test_the_grammar_judge_is_identified_by_its_rules() -> None:
    from eddecode.testbed import rules

    digest = hashlib.blake2b(repr(rules.RULES).encode(), digest_size=8).hexdigest()
    # If this fails, the rules changed and verdicts may too: set a new RULES_IDENTITY, and both values here.
    assert (make_judge("grammar").identity, digest) == ("9b70e4a2f5d1f2a0", "d96ff23ff0f67854")
