"""Figures do not depend on the release of numpy: one script under this one, and under another if there is one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers.paths import ROOT

OTHER = "EDDECODE_OTHER_NUMPY"  # folder that another release is in: pip install --target FOLDER --no-deps numpy==2.0.*


def digest(*first: str) -> tuple[str, str]:
    """(release of numpy, digest of the figures), with folders put in front of the path."""
    path = os.pathsep.join([*first, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    script = [sys.executable, str(ROOT / "tests" / "helpers" / "figures.py")]
    found = subprocess.run(
        script, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    release, text = found.stdout.split()
    return release, text


@pytest.mark.skipif(OTHER not in os.environ, reason=f"{OTHER} names no folder with another numpy")
def test_two_releases_of_numpy_give_the_same_figures() -> None:
    one, other = digest(), digest(os.path.abspath(os.environ[OTHER]))
    assert one[0] != other[0]
    assert one[1] == other[1]
