"""The check of a GPU runs from end to end on a CPU, with tiny shapes; a stage that fails or hangs costs no other."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import run, worker
from benchmarks.gpu_check.table import table
from eddecode_kernels import triton_trial
from helpers.interpreter import INTERPRETED


class InProcess:
    """Stands for a worker's process: has done all of its stages in this one as soon as it is made.

    Starting a process takes longer than the stages. `test_a_stage_that_hangs_or_dies_costs_no_other` starts real ones.
    """

    returncode = 0

    def __init__(self, options: Any, stages: list[str], folder: Path) -> None:
        worker.main([str(folder), options.size, "--dry", *stages])

    def poll(self) -> int:
        return self.returncode

    wait = poll


@pytest.mark.skipif(
    not INTERPRETED, reason="tests/kernels/test_interpreter.py runs this one in the interpreter"
)
def test_a_dry_run_does_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_start", InProcess)
    monkeypatch.setattr(triton_trial, "ROWS", (1, 20))  # the interpreter takes seconds for hundreds of rows
    status = run.main(["--dry", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "gpu_check.json").read_text())
    failed = {stage: result.get("trace", result) for stage, result in results.items() if not result["ok"]}
    assert not failed, failed
    assert status == 0
    assert list(results) == list(run.LIMITS)
    assert results["bits"]["found"]["sampled, alone = among 2"] == "1 of 1"
    assert results["speculation"]["found"]["tokens equal"] == "yes"
    for family, layers in (("gpt2", 0), ("mixtral", 1)):
        how = f"2/2 right, 2/2 alone as together; captured, {layers} compiled layers"
        assert results["families"]["found"][family].startswith(how)
    assert (tmp_path / "gpu_check.txt").read_text() in capsys.readouterr().out


def test_every_stage_has_a_limit_and_a_function() -> None:
    assert list(run.LIMITS) == list(worker.STAGES)
    assert set(run.NEEDS_PAIR) <= set(run.LIMITS)
    assert run.TOTAL < 8 * 60


WORKER = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
for stage in sys.argv[2:]:
    if stage == "hangs":
        time.sleep(60)
    if stage == "dies":
        sys.exit(3)
    (folder / f"{stage}.json").write_text(json.dumps({"ok": True, "seconds": 0.0, "found": {"a": {"b": 1.5}}}))
"""


def test_a_stage_that_hangs_or_dies_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ["one", "hangs", "two", "dies", "three"]
    monkeypatch.setattr(run, "LIMITS", dict.fromkeys(stages, 2))
    monkeypatch.setattr(run, "START_UP", 20)
    started: list[list[str]] = []

    def start(options: Any, left: list[str], folder: Path) -> subprocess.Popen[bytes]:
        started.append(list(left))
        return subprocess.Popen([sys.executable, "-c", WORKER, str(folder), *left])

    monkeypatch.setattr(run, "_start", start)
    results = run.run_stages(argparse.Namespace(stages=stages), tmp_path)
    assert [results[stage]["ok"] for stage in stages] == [True, False, True, False, True]
    assert results["hangs"]["error"] == "took longer than 2 s"
    assert results["dies"]["error"] == "the process ended with 3"
    assert started == [stages, stages[2:], stages[4:]]
    text = table(results)
    assert "a · b" in text
    assert "hangs         FAILED: took longer than 2 s" in text
