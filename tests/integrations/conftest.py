"""The commands of docs/integrations.md, run once for all tests that look at what they made."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from helpers import documented_commands
from helpers.entry_points import environment_with_entry_points
from helpers.paths import ROOT
from helpers.process import forked

PAGE = ROOT / "docs" / "integrations.md"
ANEW = ("inspect_ai", "lm_eval", "eddecode.integrations", "eddecode.cli")


@dataclass(frozen=True)
class Documented:
    """What the page's commands made: their folder, and what they printed."""

    folder: Path
    output: str


@pytest.fixture(scope="session")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Documented:
    """All code blocks of the page, in order; with several workers, the first one runs them."""
    pytest.importorskip("inspect_ai")
    pytest.importorskip("lm_eval")
    shared = tmp_path_factory.getbasetemp()
    if "gw" in shared.name or shared.name.startswith("popen-"):  # one of several workers
        shared = shared.parent
    folder, log = shared / "documented", shared / "documented.txt"
    with FileLock(str(shared / "documented.lock")):
        if not log.exists():
            folder.mkdir()
            output = shared / "documented.running"
            child, stderr = forked(partial(run_page, folder, output, shared / "entry"))
            with stderr:
                said = stderr.read()
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == 0, output.read_text() + said
            output.rename(log)
    return Documented(folder, log.read_text())


def run_page(folder: Path, output: Path, entry_points: Path) -> None:
    """Run the page's blocks in a copy of the test process, where torch and transformers are imported already.

    Inspect and the harness are imported anew, so that they find eddecode by its entry points and nothing else.
    """
    signal.alarm(570)
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    os.chdir(folder)
    os.environ.update(environment_with_entry_points(entry_points))
    sys.path[:0] = [str(entry_points)]
    for name in [name for name in sys.modules if name.startswith(ANEW)]:
        del sys.modules[name]
    documented_commands.main(str(PAGE))
    sys.stdout.flush()
