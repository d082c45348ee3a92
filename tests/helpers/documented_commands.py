"""Runs the code blocks of a document, in order, in one process.

Every start of Inspect or of torch takes seconds. So the commands of Python programs (`inspect`, `eddecode`, `python
-m …`) run in this process, after bash has expanded their arguments; all others run in bash. It prints one line per
command, and ends at the first one whose exit code is not the one that the document says.
"""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import subprocess
import sys
from functools import cache, partialmethod
from pathlib import Path

PROGRAMS = {"inspect": "inspect_ai", "eddecode": "eddecode"}
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXPECTED = re.compile(r" \|\| test \$\? -eq (\d+)$")


def commands(block: str) -> list[str]:
    """The commands of a bash block: lines, with those that continue them and here-documents."""
    found: list[str] = []
    end = None
    for line in block.splitlines():
        if end is not None or (found and found[-1].endswith("\\")):
            found[-1] += f"\n{line}"
        elif line.strip():
            found.append(line)
        started = re.search(r"<<'?(\w+)'?", line)
        end = started[1] if started else None if line == end else end
    return found


def run_command(command: str) -> None:
    """Run one command, and raise SystemExit if its exit code is not the expected one."""
    wanted = EXPECTED.search(command)
    expected = int(wanted[1]) if wanted else 0
    command = EXPECTED.sub("", command)
    program = command.split()[0]
    if program in PROGRAMS or command.startswith("python -m "):
        expanded = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {command}"], check=True, capture_output=True, text=True
        )
        arguments = expanded.stdout.split("\0")[:-1]
        module, rest = (
            (PROGRAMS[program], arguments[1:]) if program in PROGRAMS else (arguments[2], arguments[3:])
        )
        code = run_module(module, [program, *rest])
    else:
        code = subprocess.run(["bash", "-ec", command], check=False).returncode
    print(f"ran: {command.splitlines()[0]} -> {code}", flush=True)
    if code != expected:
        raise SystemExit(f"{command!r} ended with {code}; expected {expected}")


def read_no_tasks_of_the_harness() -> None:
    """lm-evaluation-harness reads its own 14,000 task files at every start (12 s); the page has a task of its own.

    Nor does it list all installed packages (0.5 s), which it would do for every evaluation.
    """
    from lm_eval import evaluator
    from lm_eval.tasks.manager import TaskManager

    TaskManager.__init__ = partialmethod(TaskManager.__init__, include_defaults=False)
    evaluator.add_env_info = lambda _: None


def run_module(module: str, arguments: list[str]) -> int:
    sys.argv = arguments
    if "lm_eval" in module or "utility" in arguments:
        read_no_tasks_of_the_harness()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def main(document: str) -> None:
    # Inspect asks for it (0.5 s) at every task.
    importlib.metadata.packages_distributions = cache(importlib.metadata.packages_distributions)
    for language, block in BLOCK.findall(Path(document).read_text("utf-8")):
        if language == "python":
            exec(compile(block, document, "exec"), {"__name__": "__main__"})
            print("ran: python", flush=True)
        else:
            for command in commands(block):
                run_command(command)
