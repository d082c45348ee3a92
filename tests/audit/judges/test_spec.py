"""Specifications of judges: text and table."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from eddecode.audit.judges import (
    make_judge,
)
from eddecode.audit.judges.spec import JudgeSpec


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
def test_the_text_form_round_trips(argument: str, options: dict[str, str]) -> None:
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
