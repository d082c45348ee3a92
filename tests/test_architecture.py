"""The picture of the architecture shows the imports of the code."""

from __future__ import annotations

import subprocess
import sys

from helpers.paths import ROOT


def test_the_picture_shows_the_imports() -> None:
    """It is drawn anew by `python docs/draw_architecture.py`."""
    command = [sys.executable, str(ROOT / "docs" / "draw_architecture.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
