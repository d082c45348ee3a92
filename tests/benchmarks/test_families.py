"""docs/families.md is up to date: rows that are made anew are those of the page, and no row is missing or wrong."""

from __future__ import annotations

import pytest

from benchmarks import families

# One of every way to run, and those that were wrong once.
MADE_ANEW = (
    "mistral",
    "gpt_oss",
    "llama4_text",
    "gemma4",
    "mllama",
    "qwen2_5_vl",
    "mistral3",
    "lfm2",
    "olmoe",
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", MADE_ANEW)
def test_a_row_that_is_made_anew_is_that_of_the_page(kind: str) -> None:
    row = families.measure(kind)
    assert row.equal, "a cached batch does not give the tokens of passes without a cache"
    assert row.low
    page = families.PAGE.read_text(encoding="utf-8")
    if row.layers.startswith("not measured"):
        pytest.skip(row.layers)
    assert str(row) in page, "run: python -m benchmarks families --write"


def test_the_page_has_a_row_for_every_family() -> None:
    page = families.PAGE.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == list(families.FAMILIES)
    assert not [line for line in rows if "**no**" in line]
