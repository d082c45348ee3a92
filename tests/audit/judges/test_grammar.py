"""The judge that parses completions by the grammar of the bundled pair."""

from __future__ import annotations

import hashlib

from eddecode.audit.judges import (
    Case,
    make_judge,
)


def test_the_grammar_judge_tells_english_from_unintelligible_text() -> None:
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
