"""eddecode's entry points for a subprocess, as pyproject.toml declares them.

An installed eddecode has them already; one that runs from a checkout may have been installed before they were declared.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from helpers.paths import ROOT


def environment_with_entry_points(folder: Path) -> dict[str, str]:
    """The environment of a subprocess that finds the entry points, the package, and no network."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    info = folder / "declared-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: declared\nVersion: 0\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    path = [str(folder), str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "INSPECT_DISPLAY": "none",
    }
