"""Conditions: α as exact text, names, and their order."""

from __future__ import annotations

import pytest

from eddecode.audit.conditions import (
    ALIGNED,
    BASE,
    Condition,
    alpha_text,
    build_conditions,
    condition_name,
    parse_alphas,
)
from eddecode.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("0.30", "0.3"),
        (0.3, "0.3"),
        (".3", "0.3"),
        ("3e-1", "0.3"),
        ("-0", "0"),
        (-1, "-1"),
        ("100", "100"),
        (1.0, "1"),
    ],
)
def test_one_text_per_alpha(given: str | float, text: str) -> None:
    assert alpha_text(given) == text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("x", "'x' is not a number"),
        ("nan", "not finite"),
        ("inf", "not finite"),
        ("1e999", "not finite|beyond"),
    ],
)
def test_what_is_no_alpha(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        alpha_text(given)


def test_alphas_once_each() -> None:
    assert parse_alphas("1, 0.3 ,-0.5") == ("1", "0.3", "-0.5")
    with pytest.raises(ConfigError, match=r"alpha 0\.3 is given twice"):
        parse_alphas("0.3,0.30")
    for text in ("", " ", "0.3,", "0.3,,1"):
        with pytest.raises(ConfigError, match="the list of alphas is"):
            parse_alphas(text)


def test_names_are_written_from_fields_and_are_unique() -> None:
    assert Condition("ed", "0.3").name == "ed@0.3"
    assert Condition("ed", "0.3", mitigation="topk5").name == "ed@0.3+topk5"
    assert Condition("base", "0", system="rude").name == "base+system:rude"
    found = build_conditions(
        ["1", "0.3", "0"],
        systems=["rude"],
        transforms=["t"],
        mitigations=["topk5", "first10"],
        finetuned=True,
        ensemble=True,
    )
    names = [condition.name for condition in found]
    assert len(set(names)) == len(names)
    assert names == [
        *("aligned", "base", "ed@0", "ed@0.3", "ed@1"),
        *("aligned+system:rude", "base+system:rude", "ed@0.3+system:rude", "ed@1+system:rude"),
        *("aligned+transform:t", "base+transform:t", "ed@0.3+transform:t", "ed@1+transform:t"),
        *("ed@0.3+topk5", "ed@1+topk5", "ed@0.3+first10", "ed@1+first10"),
        *("finetuned", "ensemble@0.3", "ensemble@1"),
    ]
    assert {condition.kind for condition in found} == {"base", "aligned", "ed"}
    assert [condition.plain for condition in found] == [True] * 5 + [False] * 15
    assert build_conditions(["1"], mitigations=["topk1"], extra_alphas=["-0.5"])[-1].name == "ed@-0.5+topk1"


def test_what_people_call_a_condition() -> None:
    assert condition_name(("ed", "0.30")) == "ed@0.3"
    assert condition_name(("base", "0")) == BASE.name
    assert condition_name(("ed@0.3+topk5", "0.3")) == "ed@0.3+topk5"
    assert condition_name(ALIGNED.name) == "aligned"
