"""Runs the stages in worker processes, and writes the results after each. It imports nothing that could fail."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.goals import MISSED, NO_FIGURE, judged
from benchmarks.gpu_check.lane import Lane
from benchmarks.gpu_check.plan import DRY_FACTOR, PHASES, STAGES, TOTAL
from benchmarks.gpu_check.table import line_of, table

ROOT = Path(__file__).resolve().parents[2]
POLL = 0.2
# Of the package's dependencies, those that decoding needs.
NEEDED = ("torch", "triton", "transformers", "numpy", "scipy", "einops", "safetensors", "pydantic")
OK, GOAL_MISSED, STAGE_FAILED = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """Run stages.

    Returns:
        0 if all of them passed and all goals were met, 1 if a goal was missed, 2 if a stage failed or a goal has no
        figure.
    """
    options = _parser().parse_args(arguments)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"{sys.executable} lacks {', '.join(missing)}; pip install {' '.join(missing)}, or take another Python"
        )
        return STAGE_FAILED
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    files = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    check = Check(options, out, files)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs the block below
    try:
        check.run()
    finally:
        check.close()
        shutil.rmtree(files, ignore_errors=True)
    print(check.write(), end="")
    return check.status()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description="What a GPU says about this checkout, in under eight minutes.",
        epilog="exit code: 0 all passed, 1 a goal was missed, 2 a stage failed",
    )
    parser.add_argument("--out", default="gpu-check", help="folder for gpu_check.json, .txt and .log")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE")
    parser.add_argument("--size", default="7B", help="of the pair, as in benchmarks.pairs")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU: tests this code itself")
    parser.add_argument("--full", action="store_true", help="a dry run with all figures of a real one")
    return parser


class Check:
    """A run of stages.

    Args:
        options: of the command line.
        out: folder for the results; those of an earlier run there are replaced.
        files: an empty folder, for the workers' files.
    """

    def __init__(self, options: argparse.Namespace, out: Path, files: Path) -> None:
        self.options, self.out, self.files = options, out, files
        self.begun = time.monotonic()
        self.results: dict[str, Any] = {}
        self._lanes: list[Lane] = []
        for name in ("gpu_check.json", "gpu_check.txt", "gpu_check.log", "tests.txt"):
            (out / name).unlink(missing_ok=True)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begun

    def run(self) -> None:
        """Run all phases."""
        slower = DRY_FACTOR if self.options.dry else 1
        total = TOTAL * slower
        for number, phase in enumerate(PHASES):
            asked = [[stage for stage in lane if stage in self.options.stages] for lane in phase]
            places = [self.files / f"{number}-{i}" for i in range(len(asked))]
            self._lanes = [
                Lane(stages, place, partial(_start, self), slower)
                for stages, place in zip(asked, places, strict=True)
                if stages
            ]
            while sum(lane.poll() for lane in self._lanes):  # each of them is asked
                self._take()
                if not self.results.get("environment", {"ok": True})["ok"]:
                    self.close("nothing can run: see the stage environment")
                if self.seconds > total:
                    self.close(f"the {total} s of the whole check were over")
                time.sleep(POLL)
            self._take()
        self._lanes = []

    def close(self, why: str = "the check was ended") -> None:
        """End what runs; stages without a result fail for this reason."""
        for lane in self._lanes:
            lane.stop(why)
        self._take()
        for stage in self.options.stages:
            self.results.setdefault(stage, {"ok": False, "error": why, "found": {}})
        self._log()
        self.write(complete=True)

    def status(self) -> int:
        """The exit code."""
        states = {verdict.state for verdict in judged(self._ordered())}
        if not all(self.results[stage]["ok"] for stage in self.options.stages):
            return STAGE_FAILED
        if self.options.dry:  # no figure means anything; in a full one, there must be all
            return STAGE_FAILED if self.options.full and NO_FIGURE in states else OK
        return STAGE_FAILED if NO_FIGURE in states else GOAL_MISSED if MISSED in states else OK

    def write(self, *, complete: bool = True) -> str:
        """Write gpu_check.json and gpu_check.txt; returns the table."""
        results = self._ordered()
        verdicts = [] if self.options.dry and not self.options.full else judged(results)
        text = table(results, verdicts, self.seconds, complete=complete)
        goals = [vars(verdict) | {"goal": verdict.goal_text} for verdict in verdicts]
        data = {"complete": complete, "seconds": self.seconds, "goals": goals, "stages": results}
        _replace(self.out / "gpu_check.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        _replace(self.out / "gpu_check.txt", text)
        return text

    def _ordered(self) -> dict[str, Any]:
        return {stage: self.results[stage] for stage in STAGES if stage in self.results}

    def _take(self) -> None:
        """New results of the lanes: written, and told."""
        new = {
            stage: result
            for lane in self._lanes
            for stage, result in lane.results.items()
            if stage not in self.results
        }
        if new:
            self.results |= new
            self.write(complete=False)
            self._log()
        for stage, result in new.items():
            print(f"[{self.seconds:4.0f} s] {line_of(stage, result)}", flush=True)

    def _log(self) -> None:
        """What all workers printed, in one file."""
        logs = sorted(self.files.glob("*/*/log"))
        if logs:
            texts = (
                f"== {log.parent.relative_to(self.files)}\n{log.read_text(encoding='utf-8', errors='replace')}"
                for log in logs
            )
            _replace(self.out / "gpu_check.log", "".join(texts))


def _start(check: Check, stages: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """A worker, in a session of its own, so that its children end with it."""
    options = check.options
    known = {stage: result["found"] for stage, result in check.results.items()}
    (folder / "known").write_text(json.dumps(known), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.gpu_check.worker", str(folder), str(check.out), options.size]
    command += ["--dry"] if options.dry else []
    command += ["--full"] if options.full else []
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [*command, *stages], start_new_session=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            cwd=ROOT, env=_environment(options.dry),
        )  # fmt: skip


def _environment(dry: bool) -> dict[str, str]:
    """Of a worker: this checkout, whether it is installed or not, and no network."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**os.environ, **own, **({"TRITON_INTERPRET": "1"} if dry else {})}


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial_file = path.with_name(f".{path.name}.part")
    partial_file.write_text(text, encoding="utf-8")
    partial_file.replace(path)
