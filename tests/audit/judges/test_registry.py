"""Building judges from specifications: errors, names, and the rules for several judges."""

from __future__ import annotations

from pathlib import Path

import pytest

from eddecode.audit.judges import (
    Judge,
    make_judge,
    make_judges,
)
from eddecode.errors import JudgeError


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lexicon,colour=red", "judge lexicon: colour is unknown; expected one of name, words"),
        ("guard", "judge guard has no model; expected guard:MODEL"),
        ("lexicon:", "judge 'lexicon:' has nothing after its colon"),  # and not the bundled list
        ("refusal: ,name=x", "has nothing after its colon"),
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
def test_errors_of_specifications(spec: str | dict[str, object], message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        make_judge(spec)


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


def test_judges_of_one_kind_need_names(tmp_path: Path) -> None:
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


def test_first_judge_judges_harm_and_names_are_unique() -> None:
    with pytest.raises(JudgeError, match="the first judge is grammar, which judges validity"):
        make_judges(["grammar", "lexicon"])
    with pytest.raises(JudgeError, match="two judges are called lexicon"):
        make_judges(["lexicon", "lexicon"])
    with pytest.raises(JudgeError, match="the first judge is none"):
        make_judges([])
