"""What the operating system says about this process."""

from __future__ import annotations

from pathlib import Path


def status_bytes(field: str) -> int:
    """A figure of /proc/self/status in bytes: `VmRSS` is in memory now, `VmHWM` was at the peak.

    Raises:
        OSError: there is no such figure here.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{status} has no {field}: memory of a process is measured on Linux only")
