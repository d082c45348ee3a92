"""A lane: stages one after the other in a worker process, which is watched, ended and replaced where that is needed.

A worker writes files into a folder: STAGE.begun when a stage begins, STAGE.part with the figures so far, STAGE.json
when it is done. A stage that hangs or ends the process costs no other: another worker does those that are left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.plan import STAGES, START_UP

AGAIN = 75  # a worker's exit code: its device no longer works, and another worker is to do the rest
LAST_LINES = 15  # of a worker's output, where it ended by itself
GRACE = 20  # seconds for a process to end after its last stage

# Starts a worker: stages and a folder for its files, which is new.
Start = Callable[[Sequence[str], Path], subprocess.Popen[bytes]]


class Lane:
    """See the module.

    Args:
        stages: in order.
        folder: for the files of its workers.
        start: starts a worker.
        slower: times that limits are longer.

    Attributes:
        results: by stage, as far as they are known.
    """

    def __init__(self, stages: Sequence[str], folder: Path, start: Start, slower: int = 1) -> None:
        self.stages, self.folder, self.slower = list(stages), folder, slower
        self.results: dict[str, Any] = {}
        self._start, self._workers, self._since = start, 0, 0.0
        self._worker: subprocess.Popen[bytes] | None = None
        self._given: list[str] = []  # the stages that the worker was started with
        self._running = ""  # the stage that it said to begin
        self._next()

    @property
    def left(self) -> list[str]:
        """Stages without a result."""
        return [stage for stage in self.stages if stage not in self.results]

    def poll(self) -> bool:
        """Take what there is, end what takes too long; whether anything is left."""
        if self._worker is None:
            return False
        ended = self._worker.poll() is not None
        self._read()
        left = self.left
        if not left:
            self._finish()
        elif ended:
            self._after_its_end(left)
        elif (over := self._limit_passed(left[0])) is not None:
            self._fail(left[0], f"took longer than {over} s, and was ended")
            self._next()
        return self._worker is not None

    def stop(self, why: str) -> None:
        """End the worker; what is left fails for this reason."""
        if self._worker is not None:
            self._read()
            self._end()
        for stage in self.left:
            self._fail(stage, why)

    # A worker ---------------------------------------------------------------------------------------------------------

    @property
    def _files(self) -> Path:
        return self.folder / f"worker-{self._workers}"

    def _next(self) -> None:
        """Another worker for what is left."""
        if self._worker is not None:
            self._end()
        self._worker = None
        if self.left:
            self._workers += 1
            self._files.mkdir(parents=True)
            self._since, self._running, self._given = time.monotonic(), "", self.left
            self._worker = self._start(self._given, self._files)

    def _read(self) -> None:
        """Results that the worker has written."""
        for stage in self.left:
            path = self._files / f"{stage}.json"
            if not path.exists():
                return
            self.results[stage] = json.loads(path.read_text(encoding="utf-8"))
            self._since = time.monotonic()

    def _after_its_end(self, left: list[str]) -> None:
        assert self._worker is not None
        status, some = self._worker.returncode, len(left) < len(self._given)
        if status == AGAIN and some:
            self._next()
            return
        error = f"the process ended with {status}: {self._said()}"
        if (self._files / f"{left[0]}.begun").exists() or some:
            self._fail(left[0], error)
            self._next()
        else:  # and would not begin the next time either
            self.stop(f"no stage began: {error}")

    def _limit_passed(self, stage: str) -> int | None:
        """The limit, if the stage has taken longer; its time begins when the worker says so."""
        if self._running != stage and (self._files / f"{stage}.begun").exists():
            self._running, self._since = stage, time.monotonic()
        limit = STAGES[stage].limit if self._running == stage else START_UP
        limit *= self.slower
        return limit if time.monotonic() - self._since > limit else None

    def _fail(self, stage: str, why: str) -> None:
        partial = self._files / f"{stage}.part"
        found = json.loads(partial.read_text(encoding="utf-8")) if partial.exists() else {}
        self.results[stage] = {"ok": False, "error": why, "found": found}

    def _said(self) -> str:
        log = self._files / "log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        return "\n".join(lines[-LAST_LINES:]) or "it printed nothing"

    def _finish(self) -> None:
        """All stages are done: a process that does not end by itself is ended."""
        assert self._worker is not None
        with suppress(subprocess.TimeoutExpired):
            self._worker.wait(GRACE)
        self._end()
        self._worker = None

    def _end(self) -> None:
        """End the worker and the processes that it started: they would go on to use the device."""
        assert self._worker is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._worker.pid, signal.SIGKILL)
        self._worker.kill()
        self._worker.wait()
