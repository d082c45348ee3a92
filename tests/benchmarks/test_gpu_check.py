"""The check of a GPU runs from end to end on a CPU, with tiny shapes; a stage that fails or hangs costs no other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_check import plan, run, tests_stage, worker
from benchmarks.gpu_check.context import REPEATS, ROUNDS, Context, Figures, StageError
from benchmarks.gpu_check.goals import GOALS, MET, MISSED, NO_FIGURE, judged
from benchmarks.gpu_check.lane import AGAIN, Lane
from benchmarks.gpu_check.table import WIDTH, table
from eddecode.execution import self_check
from eddecode_kernels import triton_trial
from helpers.interpreter import INTERPRETED
from helpers.paths import ROOT
from helpers.simulated import simulated_cuda


class InProcess:
    """Stands for a worker's process: has done all of its stages in this one as soon as it is made.

    Starting a process takes longer than the stages. `test_a_stage_that_hangs_or_dies_costs_no_other` starts real ones.
    """

    returncode, pid = 0, -1

    def __init__(self, check: run.Check, stages: Sequence[str], folder: Path) -> None:
        (folder / "known").write_text("{}")
        worker.main([str(folder), str(check.out), check.options.size, "--dry", *stages])

    def poll(self) -> int:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode

    def kill(self) -> None:
        """Nothing runs."""


@pytest.mark.skipif(
    not INTERPRETED, reason="tests/kernels/test_interpreter.py runs this one in the interpreter"
)
def test_a_dry_run_does_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_start", InProcess)
    monkeypatch.setattr("os.killpg", lambda *_: None)
    monkeypatch.setattr(triton_trial, "ROWS", (1, 20))  # the interpreter takes seconds for hundreds of rows
    monkeypatch.setattr(self_check, "PREFIXES", (1, 5, 2))  # of each model's own trial: the same
    status = run.main(["--dry", "--out", str(tmp_path)])
    data = json.loads((tmp_path / "gpu_check.json").read_text())
    results = data["stages"]
    failed = {stage: result.get("trace", result) for stage, result in results.items() if not result["ok"]}
    assert not failed, failed
    assert status == 0
    assert data["complete"]
    assert list(results) == list(plan.STAGES)
    found = {stage: result["found"] for stage, result in results.items()}
    assert found["bits"]["sampled · alone = among 64, of 32"] == 1
    assert found["speculation"]["tokens that differ with drafts"] == 0
    assert found["families"]["gpt2"] == "2/2 right, 2/2 alone as together; captured, 0 compiled layers"
    for stage in ("build", "lora", "experts"):
        assert found[stage]["base"] == found[stage]["aligned"] == "1 compiled layers, captured"
    assert (tmp_path / "gpu_check.txt").read_text() in capsys.readouterr().out


def test_the_plan_has_every_stage_once_and_fits_into_eight_minutes() -> None:
    planned = [stage for phase in plan.PHASES for lane in phase for stage in lane]
    assert sorted(planned) == sorted(plan.STAGES) == sorted(worker.FUNCTIONS)
    assert {goal.stage for goal in GOALS} <= set(planned)
    assert plan.expected_seconds() <= plan.TOTAL < 8 * 60
    assert all(stage.expected < stage.limit for stage in plan.STAGES.values())
    assert plan.STAGES["tests"].limit > tests_stage.SECONDS


# Lanes --------------------------------------------------------------------------------------------------------------

WORKER = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
for stage in sys.argv[2:]:
    (folder / f"{stage}.begun").touch()
    if stage == "hangs":
        (folder / f"{stage}.part").write_text(json.dumps({"so far": 1}))
        time.sleep(60)
    if stage == "dies":
        print("what it said last")
        sys.exit(3)
    (folder / f"{stage}.json").write_text(json.dumps({"ok": stage != "breaks", "seconds": 0.0, "found": {"a": 1.5}}))
    if stage == "breaks":
        sys.exit(75)
"""


def started(stages: list[list[str]], code: str = WORKER) -> Any:
    """A function that starts a process with this code, and notes for which stages."""

    def start(left: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
        stages.append(list(left))
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "-S", "-c", code, str(folder), *left]
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    return start


def finished(lane: Lane) -> dict[str, Any]:
    """The results of a lane, once there is nothing left."""
    end = time.monotonic() + 60
    while lane.poll():
        assert time.monotonic() < end
        time.sleep(0.02)
    return lane.results


def test_a_stage_that_hangs_or_dies_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ["one", "hangs", "two", "dies", "breaks", "three"]
    monkeypatch.setattr(plan, "STAGES", dict.fromkeys(stages, plan.Stage(1, 2)))
    monkeypatch.setattr("benchmarks.gpu_check.lane.STAGES", plan.STAGES)
    given: list[list[str]] = []
    results = finished(Lane(stages, tmp_path, started(given)))
    assert [results[stage]["ok"] for stage in stages] == [True, False, True, False, False, True]
    assert results["hangs"] == {
        "ok": False, "error": "took longer than 2 s, and was ended", "found": {"so far": 1}
    }  # fmt: skip
    assert results["dies"]["error"] == "the process ended with 3: what it said last"
    assert given == [
        stages,
        stages[2:],
        stages[4:],
        stages[5:],
    ]  # the last after a device that no longer works
    assert AGAIN == 75


def test_a_process_in_which_no_stage_begins_is_not_tried_for_each_of_them(tmp_path: Path) -> None:
    given: list[list[str]] = []
    lane = Lane(["build", "steps", "tasks"], tmp_path, started(given, "raise SystemExit('no such module')"))
    results = finished(lane)
    assert len(given) == 1
    assert {result["error"] for result in results.values()} == {
        "no stage began: the process ended with 1: no such module"
    }


def test_results_of_an_earlier_run_are_not_taken_for_those_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gpu_check.json", "tests.txt"):
        (tmp_path / name).write_text("of an earlier run")
    code = "raise SystemExit('nothing works')"
    monkeypatch.setattr(run, "_start", lambda check, stages, folder: started([], code)(stages, folder))
    assert run.main(["--stages", "environment", "bits", "--out", str(tmp_path)]) == run.STAGE_FAILED
    data = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [result["ok"] for result in data["stages"].values()] == [False, False]
    assert not (tmp_path / "tests.txt").exists()


def test_missing_packages_are_named_before_anything_is_started(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-m", "benchmarks.gpu_check", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == run.STAGE_FAILED
    assert "lacks torch, triton, transformers," in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_ended_leaves_what_it_found(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import subprocess
from benchmarks.gpu_check import run
def start(check, stages, folder):
    command = [sys.executable, "-S", "-c", {WORKER!r}, str(folder), *(("hangs",) if "trial" in stages else stages)]
    return subprocess.Popen(command, start_new_session=True)
run._start, run.NEEDED = start, ()
run.main(["--stages", "trial", "tests", "--out", {str(tmp_path)!r}])
"""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert b"tests         ok" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    data = json.loads((tmp_path / "gpu_check.json").read_text())
    assert data["stages"]["tests"]["ok"]
    assert data["stages"]["trial"] == {"ok": False, "error": "the check was ended", "found": {}}


# Goals, and what is printed -----------------------------------------------------------------------------------------


def test_goals_are_met_missed_or_without_a_figure() -> None:
    results = {
        "bandwidth": {"ok": True, "found": {"read, TB/s": 4.39 / 2}},
        "tasks": {
            "ok": True,
            "found": {
                "T1 · share of the read bandwidth": 0.84,
                "T1 · tokens a second": 71.0,
                "T3 · tokens a second": 2400,
            },
        },
        "entering": {"ok": True, "found": {"64 rows enter, ms": 20.0}},
        "steps": {"ok": True, "found": {"1 row · pair ÷ one model": float("nan")}},
    }
    verdicts = {f"{verdict.stage}, {verdict.figure}": verdict for verdict in judged(results)}
    assert verdicts["tasks, T1 · share of the read bandwidth"].state == MISSED
    assert (
        verdicts["tasks, T1 · tokens a second"].state == MET
    )  # half the bandwidth of an H200: 70 are asked for
    assert verdicts["tasks, T3 · tokens a second"].state == MISSED
    assert verdicts["tasks, T3 · tokens a second"].goal_text == "≥ 2500"
    assert verdicts["tasks, T2 · share of the read bandwidth"].state == NO_FIGURE
    assert verdicts["entering, 64 rows enter, ms"].state == MET
    assert verdicts["steps, 1 row · pair ÷ one model"].state == MISSED
    assert not [verdict for verdict in verdicts.values() if verdict.stage == "bits"]  # it was not asked for


def test_the_table_has_80_columns() -> None:
    results = {
        goal.stage: {
            "ok": False,
            "error": "a long error that goes on and on, of a line " * 3 + "\nand of a second one",
            "found": {
                goal.figure: 1234.5678,
                "a figure with a name that is longer than the table is wide" * 2: "x" * 20,
            },
        }
        for goal in GOALS
    }
    text = table(results, judged(results), 100.0, complete=False)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "so far" in text
    for goal in GOALS:
        assert f"{goal.stage}: {goal.figure}" in text


def test_figures_are_kept_as_they_are_found() -> None:
    kept: list[dict[str, Any]] = []
    found = Figures(lambda figures: kept.append(dict(figures)))
    found["a"] = 1
    found.put({"b": 2, "c": 3})
    assert kept == [{"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}]


@pytest.mark.parametrize("error", [StageError("not as promised"), ValueError("broken")])
def test_a_stage_that_fails_keeps_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def stage(context: Context, found: Figures) -> None:
        found["measured"] = 1.0
        raise error

    monkeypatch.setattr(worker, "function_of", lambda name: stage)
    context = Context(torch.device("cpu"), torch.float32, True, "7B", tmp_path)
    result = worker.run_stage("bits", context, tmp_path / "stage.part")
    assert not result["ok"]
    assert str(error) in result["error"]
    assert result["found"] == json.loads((tmp_path / "stage.part").read_text()) == {"measured": 1.0}


def test_every_stage_has_a_function_and_a_module_that_cannot_be_imported_costs_its_own_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(callable(worker.function_of(stage)) for stage in plan.STAGES)
    monkeypatch.setitem(sys.modules, "benchmarks.gpu_check.other_pairs", None)
    context = Context(torch.device("cpu"), torch.float32, True, "7B", tmp_path)
    assert not worker.run_stage("lora", context, tmp_path / "a.part")["ok"]
    assert worker.run_stage("environment", context, tmp_path / "b.part")["ok"]


def test_time_is_measured_and_a_fault_is_noticed_on_a_simulated_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated_cuda():
        context = Context(torch.device("cuda", 0), torch.float32, False, "7B", tmp_path)
        numbers = torch.zeros(4, device=context.device)
        assert context.device_ms(lambda: numbers.add_(1)) > 0
        runs = 2 + 1 + REPEATS * ROUNDS  # before the capture, which runs nothing; once, and to measure
        assert numbers.tolist() == [runs] * 4
        assert context.seconds(lambda: numbers.add_(1)) > 0
        context.release()
        assert worker.run_stage("environment", context, tmp_path / "a.part")["found"]["capability"] == "9.0"
        assert worker.works(context)
        fault = RuntimeError("CUDA error: an illegal memory access was encountered")
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: (_ for _ in ()).throw(fault))
        assert not worker.works(context)


@pytest.mark.parametrize(
    "line",
    [
        "tests/a.py::test_one[x-1] PASSED [  5%]",
        "[gw3] [  5%] PASSED tests/a.py::test_one[x-1] ",
    ],
)
def test_tests_are_counted_with_xdist_and_without(line: str) -> None:
    lines = [
        "plugins: xdist",
        line,
        line.replace("PASSED", "FAILED"),
        "FAILED tests/a.py::test_one - AssertionError",
    ]
    assert tests_stage.counts(lines) == {"passed": 1, "skipped": 0, "failed": 1}
