"""The commands of docs/integrations.md, run once for all tests that look at what they made."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from helpers.entry_points import environment_with_entry_points
from helpers.paths import ROOT

PAGE = ROOT / "docs" / "integrations.md"


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
            script = ROOT / "tests" / "helpers" / "documented_commands.py"
            done = subprocess.run(
                [sys.executable, str(script), str(PAGE)],
                env=environment_with_entry_points(shared / "entry"),
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=570,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            log.write_text(done.stdout)
    return Documented(folder, log.read_text())
