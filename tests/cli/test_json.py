"""`--json`: standard output holds the result as JSON, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eddecode.cli import app
from helpers.stub_runs import config, run

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("json") / "run"
    run(config(out))
    return out


def said(*arguments: Any) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code in (0, 1, 3), result.output
    return json.loads(result.stdout)


def test_what_commands_write_they_name(folder: Path, tmp_path: Path) -> None:
    for command in (
        ("init", tmp_path / "audit.toml"),
        ("init", tmp_path / "bundled.toml", "--bundled"),
        ("policy", "init", tmp_path / "bundled.toml", "--out", tmp_path / "policy.toml"),
        ("label-sheet", folder, "--out", tmp_path / "sheet.csv"),
        ("export", folder, "--to", "csv", "--out", tmp_path / "all.csv"),
    ):
        written = said(*command, "--json")["written"]
        for path in [written] if isinstance(written, str) else written:
            assert Path(path).is_file()


def test_runs_are_their_summaries(folder: Path) -> None:
    summary = said("judge", folder, "--judge", "refusal", "--json")
    assert [judge["name"] for judge in summary["judges"]] == ["lexicon", "refusal"]
    assert said("report", folder, "--json")
    assert said("gate", folder, "--max-reversal", "5%", "--json", "-")["exit_code"] in (1, 2, 3)
    assert len(said("runs", folder.parent, "--json")) == 1


def test_completions_are_a_list(folder: Path) -> None:
    rows = said("export", folder, "--condition", "base", "--json")
    assert (len(rows), {row["condition"] for row in rows}) == (36, {"base"})
    refused = CliRunner().invoke(app, ["export", str(folder), "--to", "csv", "--json"])
    assert (refused.exit_code, "drop one of them" in refused.stderr) == (2, True)


def test_an_audit_of_the_bundled_pair_needs_no_editing(tmp_path: Path) -> None:
    said("init", tmp_path / "a.toml", "--bundled", "--json")
    shown = said("preview", "--config", tmp_path / "a.toml", "--limit", "1", "--json")
    assert "Customer:" in json.dumps(shown)
