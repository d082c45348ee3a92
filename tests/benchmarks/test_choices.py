"""Lists among the options of benchmarks."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import against, attack_memory, compare, growth, scale
from benchmarks.reliability import __main__ as reliability


@pytest.mark.parametrize(
    ("main", "text", "message"),
    [
        (compare.main, ["--tasks", ""], "the list of names is empty"),
        (compare.main, ["--tasks", "T1,,T2"], "has an empty entry"),
        (growth.main, ["--vary", "batch,batch"], "name batch is given twice"),
        (reliability.main, ["--only", "kill"], "kill; expected some of kills"),
        (scale.main, ["--only", "sumary"], "sumary; expected some of summary"),
        (against.parse, [".", "--pairs", "10M"], "10M; expected some of bundled:float32"),
        (attack_memory.main, ["--attacks", ""], "the list of attacks is empty"),
    ],
)
def test_lists_with_gaps_repeats_or_unknown_names_measure_nothing(
    main: Any, text: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(text)
    assert message in capsys.readouterr().err
