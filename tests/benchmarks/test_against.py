"""Two checkouts compared: the ratio follows from the times, and each process runs the code of its own checkout."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import against


class Answers:
    """A checkout that takes given seconds for each run, and always gives the same tokens."""

    def __init__(self, seconds: list[float], digest: str) -> None:
        self.seconds, self.digest, self.asked = iter(seconds), digest, []

    def ask(self, **request: Any) -> dict[str, Any]:
        self.asked.append(request["times"])
        return {"seconds": next(self.seconds), "digest": self.digest, "tokens": 128}


@pytest.mark.parametrize("digest", ["a", "b"])
def test_ratios_are_taken_within_rounds(digest: str) -> None:
    this = Answers([9.0, 0.25, 1.0, 2.0, 4.0], "a")  # to warm up, to choose the repetitions, and three rounds
    other = Answers([9.0, 2.0, 3.0, 4.0], digest)
    found = against.measure(this, other, "T1", Namespace(quick=False, seconds=1.0, rounds=3))  # type: ignore[arg-type]
    assert this.asked == [1, 1, 4, 4, 4]
    assert other.asked == [1, 4, 4, 4]
    assert found["seconds"] == {"this": [1.0, 2.0, 4.0], "other": [2.0, 3.0, 4.0]}
    assert found["ratio"] == {"median": 1.5, "min": 1.0, "max": 2.0}
    assert found["same_tokens"] == (digest == "a")


def test_options_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(tmp_path)], "is not a checkout: it has no eddecode/__init__.py"),
        ([str(against.HERE), "--tasks", "T1,T9"], "T9; expected some of T1, T2, T3, T4"),
        ([str(against.HERE), "--pairs", "10M"], "10M; expected some of bundled:float32"),
    ):
        with pytest.raises(SystemExit):
            against.main(arguments)
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkout_against_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By one process for both, as starting it takes longest."""
    start, started = against.Checkout, dict[Path, against.Checkout]()

    def shared(path: Path, options: Namespace) -> against.Checkout:
        if path not in started:
            started[path] = start(path, options)
        return started[path]

    monkeypatch.setattr(against, "Checkout", shared)
    out = tmp_path / "against.json"
    options = ["--pairs", "bundled:float32", "--tasks", "T1", "--rounds", "2", "--threads", "1"]
    options += ["--seconds", "0", "--quick", "--out"]
    assert against.main([str(against.HERE), *options, str(out)]) == 0
    assert "same" in capsys.readouterr().out.splitlines()[-1]
    result = json.loads(out.read_text())["results"][0]
    assert len(result["seconds"]["this"]) == len(result["seconds"]["other"]) == 2
    assert result["same_tokens"] is True
