"""Paths that the system refuses, for every command: one line that says what to do, and exit code 2."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eddecode.cli import app
from eddecode.cli.messages import os_error_in_words
from helpers.stub_runs import config, run

LONG = "x" * 300
AUDIT = ("audit", "--base", "{models}/base", "--aligned", "{models}/aligned", "--judge", "lexicon")
COMMANDS: dict[str, tuple[str, ...]] = {
    "audit --out": (*AUDIT, "--prompts", "{prompts}", "--out", "{bad}"),
    "audit --prompts": (*AUDIT, "--prompts", "{bad}", "--out", "{free}"),
    "audit --config": ("audit", "--config", "{bad}"),
    "audit --base": (
        "audit",
        "--base",
        "{bad}",
        "--aligned",
        "{bad}",
        "--prompts",
        "{prompts}",
        "--out",
        "{free}",
        "--judge",
        "lexicon",
    ),
    "export --out": ("export", "{run}", "--out", "{bad}"),
    "export": ("export", "{bad}"),
    "merge --out": ("merge", "{part}", "--out", "{bad}"),
    "merge": ("merge", "{bad}", "--out", "{free}"),
    "gate": ("gate", "{bad}", "--max-reversal", "5%"),
    "gate --json": ("gate", "{run}", "--max-reversal", "5%", "--json", "{bad}"),
    "gate --policy": ("gate", "{run}", "--policy", "{bad}"),
    "report": ("report", "{bad}"),
    "report --out": ("report", "{run}", "--out", "{bad}"),
    "compare": ("compare", "{run}", "{bad}"),
    "judge": ("judge", "{bad}", "--judge", "lexicon"),
    "label-sheet --out": ("label-sheet", "{run}", "--out", "{bad}"),
    "runs": ("runs", "{bad}"),
    "init": ("init", "{bad}"),
    "policy init --out": ("policy", "init", "{bad}", "--out", "{bad}"),
    "pair": ("pair", "{bad}", "{bad}"),
    "preview": ("preview", "--base", "{bad}", "--aligned", "{bad}", "--prompts", "{prompts}"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("paths")
    run(config(folder / "run"))
    run(config(folder / "part"), shard="1/1")
    (folder / "file").write_text("hi")
    (folder / "prompts.jsonl").write_text('{"prompt": "good evening"}\n')
    found = {name: str(folder / name) for name in ("run", "part", "free", "models")}
    return {**found, "prompts": str(folder / "prompts.jsonl"), "folder": str(folder)}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_name_that_is_too_long_is_one_line(name: str, places: dict[str, str]) -> None:
    values = {**places, "bad": f"{places['folder']}/{LONG}"}
    done = CliRunner().invoke(app, [part.format(**values) for part in COMMANDS[name]])
    said = done.stderr.strip().splitlines()
    assert done.exit_code == 2, done.output
    assert said, name
    assert said[-1].startswith(("error: ", "Error: ")), said
    assert "fault of eddecode" not in done.stderr
    assert "Errno" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(places["free"], "run.sqlite").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_blank_name_is_not_the_current_folder(
    name: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a shell variable that is not set, within the folder of a run."""
    monkeypatch.chdir(places["run"])
    done = CliRunner().invoke(app, [part.format(**{**places, "bad": ""}) for part in COMMANDS[name]])
    assert done.exit_code == 2
    assert "blank" in done.stderr or "is ''" in done.stderr


@pytest.mark.parametrize(
    "number", [errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC, errno.EBADF]
)
def test_an_error_of_the_system_says_what_to_do(number: int) -> None:
    said = os_error_in_words(OSError(number, os.strerror(number), LONG))
    assert said.startswith("x" * 80 + "… (300 characters): " + os.strerror(number) + "; ")
    assert "Errno" not in said
    assert os_error_in_words(OSError("odd")) == "odd"
    assert os_error_in_words(OSError(errno.EIO, "odd", 3)) == "3: odd; check the disk"
