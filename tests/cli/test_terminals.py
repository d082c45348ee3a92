"""Streams that a shell, a service or a container gives: closed, full, not in UTF-8, of no width."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eddecode.cli import app, main
from eddecode.cli.common import standard_input
from eddecode.errors import ConfigError
from helpers.stub_runs import config, run


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, os.strerror(28))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The program's exit code, called as from a shell."""
    monkeypatch.setattr(sys, "argv", ["eddecode", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_help_where_the_terminal_has_no_greek(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="latin-1", write_through=True))
    assert call(monkeypatch, "audit", "--help") == 0
    assert b"Strengths \\u03b1" in data.getvalue()


def test_help_on_a_full_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    assert call(monkeypatch, "--help") == 2
    assert "error: No space left on device; free some space" in capsys.readouterr().err


def test_no_verdict_where_standard_error_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    assert call(monkeypatch, "gate", str(tmp_path), "--max-reversal", "5%") == 2


def test_a_terminal_that_has_not_said_its_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert call(monkeypatch, "plan", "-h") == 0
    assert "--base-rate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "found"), [(None, "standard input is closed"), (b"caf\xe9", "is not UTF-8")]
)
def test_standard_input_without_text(monkeypatch: pytest.MonkeyPatch, data: bytes | None, found: str) -> None:
    stream = None if data is None else io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    with pytest.raises(ConfigError, match=found):
        standard_input()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("plan", "--prompts", "300"), "--prompts plan a cluster"),
        (("plan", "--gpus", "4", "--bits", "8"), "--gpus, --bits plan a cluster"),
        (("gate", "run", "--json", "x", "--junit", "x"), "--json and --junit name one file, x"),
        (("pair", "a", "b", "--top", "5"), "--top is the length of the lists of --tokens"),
        (("generate", "hello", "--top-k", "9" * 25), "top_k is 999"),
    ],
)
def test_options_that_nothing_reads_are_errors(arguments: tuple[str, ...], found: str) -> None:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2
    assert f"error: {found}" in done.stderr


@pytest.mark.parametrize("options", [(), ("--json", "-")])
def test_the_verdict_is_the_exit_code_where_nobody_reads_it(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `eddecode gate RUN | head -1`: 0 would be a pass, and 1 a fail."""
    run(config(tmp_path / "run"))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8", closefd=False) as output:
        monkeypatch.setattr(sys, "stdout", output)
        arguments = (
            "gate",
            str(tmp_path / "run"),
            "--max-reversal",
            "5%",
            "--junit",
            str(tmp_path / "gate.xml"),
        )
        assert call(monkeypatch, *arguments, *options) == 3
    os.close(writer)
    assert (tmp_path / "gate.xml").is_file()
