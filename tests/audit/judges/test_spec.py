"""How judges are written down and built, and the judges that need no model: words, refusals, Python callables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eddecode.audit.judges import (
    Case,
    Judge,
    Verdict,
    fingerprint,
    make_judge,
    make_judges,
    release,
    verdicts_of,
)
from eddecode.audit.judges.lexicon import LexiconJudge, inflections
from eddecode.audit.judges.refusal import RefusalJudge
from eddecode.audit.judges.spec import JudgeSpec
from eddecode.errors import JudgeError


def cases(*texts: str) -> list[Case]:
    return [Case("hello?", text) for text in texts]


def flags(judge: Judge, *texts: str) -> list[bool]:
    return [verdict.flag for verdict in judge(cases(*texts))]


# Specifications --------------------------------------------------------------------------------------------------


def test_a_spec_has_a_kind_an_argument_and_options() -> None:
    spec = JudgeSpec.parse("yesno:models/judge,question=Rude, or curt?,threshold=0.7")
    assert spec == JudgeSpec(
        "yesno", "models/judge", {"question": "Rude, or curt?", "threshold": "0.7"}
    )  # only `,key=` starts an option: other commas are text
    assert JudgeSpec.parse("lexicon:C:\\words, mine.txt").argument == "C:\\words, mine.txt"
    assert JudgeSpec.parse("lexicon,name=a") == JudgeSpec("lexicon", None, {"name": "a"})
    assert JudgeSpec.parse({"kind": "guard", "model": "m"}) == JudgeSpec("guard", None, {"model": "m"})


_WORD = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), min_size=1).filter(
    lambda text: "=" not in text and text == text.strip() and not text.startswith(":")
)


@given(_WORD, st.dictionaries(st.from_regex("[a-z][a-z0-9_]{0,8}", fullmatch=True), _WORD, max_size=3))
def test_what_is_written_is_what_is_read(argument: str, options: dict[str, str]) -> None:
    spec = JudgeSpec("lexicon", argument, options)
    assert JudgeSpec.parse(str(spec)) == spec


def test_a_table_and_a_text_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("fool\n")
    path = str(tmp_path / "words.txt")
    table = {"kind": "lexicon", "words": path, "name": "mine"}
    first, second = make_judge(table), make_judge(f"lexicon:{path},name=mine")
    third = make_judge(str(JudgeSpec.parse(table)))
    assert first.name == second.name == third.name == "mine"
    assert first.identity == second.identity == third.identity
    assert (
        str(JudgeSpec("c", None, {"harmful": ["a", "b"], "multi_label": True}))
        == "c,harmful=a+b,multi_label=true"
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lexicon,colour=red", "judge lexicon: colour is unknown; expected one of name, words"),
        ("guard", "judge guard has no model; expected guard:MODEL"),
        ("guard:x,threshold=2", "threshold is '2'; expected a value of at most 1"),
        ("guard:x,threshold=high", "threshold is 'high'; expected a number"),
        ("guard:x,batch=0", "batch is '0'; expected a value of at least 1"),
        ("guard:x,batch=two", "batch is 'two'; expected an integer"),
        ("classifier:x,long=cut", "long is 'cut'; expected 'error', 'start', 'end' or 'windows'"),
        ("classifier:x,multi_label=perhaps", "multi_label is 'perhaps'; expected true or false"),
        ({"kind": "classifier", "model": "x", "harmful": []}, "expected names joined by +"),
        ({"kind": "classifier", "model": "x", "batch": 2.5}, "batch is 2.5; expected an integer"),
        ("yesno:x,role=judge", "role is 'judge'; expected 'harm', 'validity' or 'refusal'"),
        ("lexicon,name=a,name=b", "has the option name twice"),
        ({"model": "x"}, "expected a table with kind"),
        ("guard:/does/not/exist", "judge guard:exist: .*'/does/not/exist'"),
    ],
)
def test_what_is_written_wrongly_is_told(spec: str | dict[str, object], message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        make_judge(spec)


def test_two_of_a_kind_take_names(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("fool\n")
    with pytest.raises(JudgeError, match="add ,name=…"):
        make_judges(["lexicon", "lexicon"])
    judges = make_judges(
        ["lexicon", f"lexicon:{tmp_path / 'words.txt'},name=short", "refusal", "grammar,name=g"]
    )
    assert [(judge.name, judge.role) for judge in judges] == [
        ("lexicon", "harm"),
        ("short", "harm"),
        ("refusal", "refusal"),
        ("g", "validity"),
    ]
    assert all(isinstance(judge, Judge) for judge in judges)


class Fixed:
    """A judge that says what it was told to."""

    name, role, identity = "fixed", "harm", "0"

    def __init__(self, *scores: float) -> None:
        self.scores, self.released = scores, False

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        return [Verdict(score, score > 0.5, "x") for score in self.scores]

    def release(self) -> None:
        self.released = True


def test_verdicts_are_checked() -> None:
    assert [v.score for v in verdicts_of(Fixed(0, 1), cases("a", "b"))] == [0, 1]
    assert verdicts_of(Fixed(1), []) == []
    with pytest.raises(JudgeError, match="judge fixed returned 1 verdicts for 2 completions"):
        verdicts_of(Fixed(1), cases("a", "b"))
    for score in (1.5, -0.1, float("nan")):
        with pytest.raises(JudgeError, match="gave completion 1 of 2 the score"):
            verdicts_of(Fixed(0, score), cases("a", "b"))


def test_release_asks_only_judges_that_can() -> None:
    judge = Fixed()
    release(judge)
    release(make_judge("lexicon"))
    assert judge.released


def test_fingerprints_differ_where_the_facts_do() -> None:
    assert fingerprint(a=1, b=[2]) == fingerprint(b=[2], a=1)
    assert len({fingerprint(a=1), fingerprint(a=2), fingerprint(b=1), fingerprint(a="1")}) == 4


# Words -----------------------------------------------------------------------------------------------------------


def test_invisible_characters_hide_no_word() -> None:
    judge = LexiconJudge(["fool", "don't care"])
    hidden = ("fo\u200bol", "f\u00adool", "\u202efool", "ＦＯＯＬ", "don\u2018t\u200d care", "donʼt care")
    assert all(flags(judge, *hidden))
    assert not any(flags(judge, "fo ol", "f.ool"))


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
def test_inflections(word: str, forms: set[str]) -> None:
    assert forms | {word} <= inflections(word)


# Refusals --------------------------------------------------------------------------------------------------------


def test_refusals_and_the_other_way_round() -> None:
    refusal, inverted = make_judge("refusal"), make_judge("not-refused")
    declined = ["I’m sorry, but I can’t help with that.", "Sadly I am  unable to do so.", "I WON'T DO THAT!"]
    complied = ["Sure! Here is the poem.", "I can help with that.", "We cannot ship before Monday.", ""]
    assert flags(refusal, *declined, *complied) == [True] * 3 + [False] * 4
    assert flags(inverted, *declined, *complied) == [False] * 3 + [True] * 4
    assert (refusal.role, inverted.role) == ("refusal", "harm")
    assert refusal.identity != inverted.identity
    assert refusal(cases(declined[0])) == [Verdict(1.0, True, "refused", "i can't help")]
    assert inverted(cases(complied[0])) == [Verdict(1.0, True, "not-refused")]


def test_refusal_phrases_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "no.txt").write_text("# ours\ncomputer says no\n")
    judge = make_judge(f"not-refused:{tmp_path / 'no.txt'}")
    assert judge.name == "not-refused:no.txt"
    assert flags(judge, "Computer says no.", "I cannot help") == [False, True]
    assert judge.identity != RefusalJudge.load(inverted=True).identity


# Python ----------------------------------------------------------------------------------------------------------

MODULE = """
from eddecode.audit.judges import Verdict

def shouting(cases):
    return [case.completion.isupper() for case in cases]

def length(cases):
    return (min(len(case.completion) / 10, 1) for case in cases)

def full(cases):
    return [Verdict(0.2, True, "odd", case.prompt) for case in cases]

def wrong(cases):
    return [None for case in cases]

def fails(cases):
    raise KeyError("x")

constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_judges.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_judges", raising=False)
    return tmp_path / "own_judges.py"


def test_a_function_may_return_bools_numbers_or_verdicts(module: Path) -> None:
    shouting = make_judge("python:own_judges:shouting")
    assert (shouting.name, shouting.role) == ("python:own_judges:shouting", "harm")
    assert verdicts_of(shouting, cases("AH", "ah")) == [
        Verdict(1.0, True, "flagged"),
        Verdict(0.0, False, "clean"),
    ]
    length = make_judge("python:own_judges:length,threshold=0.9,name=long,role=validity")
    assert [(v.score, v.flag) for v in length(cases("x" * 8, "x" * 9))] == [(0.8, False), (0.9, True)]
    assert (length.name, length.role) == ("long", "validity")
    assert make_judge("python:own_judges:full")(cases("x")) == [Verdict(0.2, True, "odd", "hello?")]
    assert str(module.parent) not in sys.path


def test_a_functions_identity_follows_its_source(module: Path) -> None:
    before = make_judge("python:own_judges:shouting").identity
    assert before != make_judge("python:own_judges:length").identity
    module.write_text(MODULE + "# edited\n")
    assert make_judge("python:own_judges:shouting").identity != before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("python:own_judges", "expected python:module:function"),
        ("python:no_such_module:f", "module 'no_such_module' cannot be imported"),
        ("python:own_judges:nothing", "own_judges has no function 'nothing'"),
        ("python:own_judges:constant", "own_judges has no function 'constant'"),
    ],
)
def test_functions_that_cannot_be_found(module: Path, spec: str, message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        make_judge(spec)


def test_functions_that_break_the_contract(module: Path) -> None:
    with pytest.raises(JudgeError, match="returned a NoneType; expected a Verdict, a bool or a number"):
        make_judge("python:own_judges:wrong")(cases("x"))
    with pytest.raises(JudgeError, match="judge python:own_judges:fails failed: KeyError: 'x'"):
        make_judge("python:own_judges:fails")(cases("x"))
