"""Figures of the operating system about the process that runs the tests."""

from __future__ import annotations

from pathlib import Path


def resident(field: str = "VmRSS") -> int:
    """Bytes in memory now, or at the peak ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
