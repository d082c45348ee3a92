"""Mitigations: one name each, what they limit, and what is not called safe."""

from __future__ import annotations

import pytest

from eddecode.audit.mitigations import (
    EXAMPLES,
    RELEASE_SIDE,
    access_of,
    canonical,
    meaning,
    parse_mitigations,
)
from eddecode.errors import ConfigError
from eddecode.sampling.access import Access


@pytest.mark.parametrize(
    ("name", "access"),
    [
        ("topk20", Access(top_k=20)),
        ("round0", Access(decimals=0)),
        ("noise0.5", Access(noise=0.5)),
        ("first10", Access(tokens=10)),
        ("first10-topk5", Access(top_k=5, tokens=10)),
    ],
)
def test_mitigations_by_name(name: str, access: Access) -> None:
    assert access_of(name) == access
    assert access_of(canonical(name)) == access


def test_mitigations_have_one_name_and_words() -> None:
    assert canonical(" TopK05-noise0.50 ") == "noise0.5-topk5"
    assert parse_mitigations("topk1, round2") == ("topk1", "round2")
    for name in ("topk1000000", "noise0.1234567", "noise0.00001", "first10000000-topk20"):
        assert sorted(canonical(name).split("-")) == sorted(name.split("-"))  # all digits, no exponent
        access_of(canonical(name))
    assert all(canonical(name) == name and meaning(name) for name in EXAMPLES)
    assert meaning("topk5-round2").count(";") == 1
    for wrong in ("topk", "topk0", "topk1.5", "top5", "topk5-topk6", "noise-1", "topk\u0665", ""):
        with pytest.raises(ConfigError, match="there is no mitigation"):
            access_of(wrong)
    with pytest.raises(ConfigError, match="mitigation topk5 is given twice"):
        parse_mitigations(["topk5", "topk05"])
    for text in ("", " , ", "topk5,"):
        with pytest.raises(ConfigError, match="the list of mitigations is"):
            parse_mitigations(text)


def test_another_tokenizer_is_not_called_safe() -> None:
    effects = {statement.name: statement.effect for statement in RELEASE_SIDE}
    assert set(effects) == {"base-withheld", "adapter-only", "other-tokenizer"}
    assert "2606.12342" in effects["other-tokenizer"]
    assert "does not make a release safe" in effects["other-tokenizer"]
