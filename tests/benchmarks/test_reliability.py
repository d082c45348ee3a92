"""The benchmark of reliability finds what it counts: its cases are right, and a store that believes damage is not."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability import __main__ as reliability
from eddecode.audit import run as audit_run
from eddecode.audit.store import store, verified


@pytest.fixture(autouse=True)
def _pictures_and_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(audit_run, "write_curve", audit_run.write_curve)  # the benchmark replaces it
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the tests keep theirs: waits for no disk


def test_small_cases_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--only", "kills,limits,moves,long", "--kills", "1", "--limits", "1", "--completions", "200"]
    assert reliability.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| … stored twice | 0 | 0 |" in lines
    assert not [line for line in lines if "WRONG" in line]


def test_a_store_that_believes_what_it_reads_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def believe(*arguments: Any) -> None: ...

    monkeypatch.setattr(store, "verify", believe)
    monkeypatch.setattr(verified, "verify", believe)
    assert reliability.main(["--only", "flips", "--flips", "40"]) == 1
    assert "**WRONG**" in capsys.readouterr().out
