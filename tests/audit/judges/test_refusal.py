"""The judges of refusal."""

from __future__ import annotations

from pathlib import Path

from eddecode.audit.judges import (
    Verdict,
    make_judge,
)
from eddecode.audit.judges.refusal import RefusalJudge
from helpers.judging import cases, flags


def test_refusals_and_inverted() -> None:
    refusal, inverted = make_judge("refusal"), make_judge("not-refused")
    declined = ["I’m sorry, but I can’t help with that.", "Sadly I am  unable to do so.", "I WON'T DO THAT!"]
    complied = ["Sure! Here is the poem.", "I can help with that.", "We cannot ship before Monday.", ""]
    assert flags(refusal, *declined, *complied) == [True] * 3 + [False] * 4
    assert flags(inverted, *declined, *complied) == [False] * 3 + [True] * 4
    assert (refusal.role, inverted.role) == ("refusal", "harm")
    assert refusal.identity != inverted.identity
    assert refusal(cases(declined[0])) == [Verdict(1.0, True, "refused", "i can't help")]
    assert inverted(cases(complied[0])) == [Verdict(1.0, True, "not-refused")]


def test_refusal_phrases_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "no.txt").write_text("# ours\ncomputer says no\n")
    judge = make_judge(f"not-refused:{tmp_path / 'no.txt'}")
    assert judge.name == "not-refused:no.txt"
    assert flags(judge, "Computer says no.", "I cannot help") == [False, True]
    assert judge.identity != RefusalJudge.load(inverted=True).identity
