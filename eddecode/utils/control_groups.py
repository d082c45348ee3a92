"""The control groups of this process: a container's limits on memory and processors are written in their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# The process's own group or any of its parents may have a limit.
OWN_GROUPS, CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def control_group_folders(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the process's groups, the outermost first, and the version (1 or 2) of the files in them.

    A folder may be missing: in a container the root is often the container's own group, while /proc names its path
    outside of the container.

    Args:
        controller: "memory" or "cpu".
    """
    try:
        lines = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers and controller not in controllers.split(","):
            continue
        folder, version = (CONTROL_GROUPS / controller, 1) if controllers else (CONTROL_GROUPS, 2)
        yield folder, version
        for part in path.strip("/").split("/"):
            folder /= part
            yield folder, version
