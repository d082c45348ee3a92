"""How many files of the package a reader has to open to follow a command."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

from typer.testing import CliRunner

import eddecode
from eddecode.audit import AuditConfig, audit
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.cli.commands import app
from helpers.stub_sampler import StubSampler

PACKAGE = Path(eddecode.__file__).parent


def files_entered(*arguments: str) -> tuple[list[str], Any]:
    """The files of the package in which a command enters a function, and its result.

    The command runs twice, and the second run is traced: what happens while modules are imported does not count.
    """
    CliRunner().invoke(app, arguments)
    entered: set[str] = set()

    def trace(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(trace)
    try:
        result = CliRunner().invoke(app, arguments)
    finally:
        sys.setprofile(before)
    inside = [Path(name) for name in entered if Path(name).is_relative_to(PACKAGE)]
    return sorted(str(path.relative_to(PACKAGE)) for path in inside), result


SHARED = ("audit/analysis/", "audit/stats/", "audit/store/", "audit/data/", "audit/conditions.py")


def test_the_files_of_the_gate(tmp_path: Path) -> None:
    """From the command line to the exit code, on a run with its store.

    The gate believes no file that could have been edited: it computes the summary anew, by the function that the audit
    computes it by. So it enters the files of the store, the analysis and the statistics that make a summary (which
    someone who reads the gate need not open), and 17 of its own; two of them know what is reasoning and what an answer.
    """
    prompts = [f"prompt {i}" for i in range(30)]
    config = AuditConfig(base="b", aligned="a", prompts=prompts, out=tmp_path / "run", alphas="0.3,1")
    audit(config, sampler=StubSampler(), judges=[LexiconJudge(["idiot"])])
    files, result = files_entered("gate", str(tmp_path / "run"), "--max-reversal", "0.05")
    assert result.exit_code in (0, 1, 3), result.output
    assert {"audit/gate.py", "audit/analysis/summary.py"} <= set(files)
    own = [file for file in files if not file.startswith(SHARED)]
    assert len(own) <= 17, own
    assert len(files) <= 43, files
