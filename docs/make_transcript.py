"""Writes the transcripts of the README: `python docs/make_transcript.py hour|inspect [--keep FOLDER]`.

Each one clones this checkout into a new folder and runs commands of README.md there, in one shell, exactly as they are
printed: nothing is typed that the README does not say. What they print is written to docs/transcript-NAME.md, with the
time that each command took and its exit code. pip needs its package index; all else runs offline. A test compares the
commands of the transcripts with those of the README.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 24  # lines of output that are kept of one command: the first and the last ones
_END = "end of a command"
_OF_PIP = re.compile(
    r"\s*(Looking in (indexes|links)|WARNING: Location |Stored in directory: |━|─* [\d.]+/)"
)  # sources, and progress


@dataclass(frozen=True)
class Transcript:
    """What a transcript runs, and how its page introduces it.

    Attributes:
        title, about: the head of the page.
        sections: headings of the README whose commands are run, in order, each with the first words of the commands to
            run; an empty tuple stands for all.
        before: commands that set the stage, shown and not from the README.
    """

    title: str
    about: str
    sections: tuple[tuple[str, tuple[str, ...]], ...]
    before: tuple[str, ...] = ()


TRANSCRIPTS = {
    "hour": Transcript(
        "A newcomer's hour",
        "From a clone to a verdict, with nothing but the README: its commands, and what they printed.",
        (("Install and see it", ("make demo",)), ("A first hour", ())),
    ),
    "inspect": Transcript(
        "From a fresh environment to a verdict, in Inspect",
        "A new virtual environment, the README's commands for Inspect, an Inspect log, and the gate's verdict on it. "
        "PyTorch's CPU build is installed first, as the README says for a machine without a GPU.",
        (("Use it from Inspect", ()),),
        (
            "python3 -m venv .venv",
            "source .venv/bin/activate",
            "pip install \"$(grep '^torch==' constraints.txt)\"",
        ),
    ),
}


def readme_commands(heading: str, wanted: tuple[str, ...] = (), text: str | None = None) -> list[str]:
    """The commands of one section of README.md, without their comments; lines that end with a backslash go on.

    Args:
        heading: of the section.
        wanted: first words of the commands to take; empty: all.
        text: of the README; None: of this checkout.
    """
    text = (ROOT / "README.md").read_text("utf-8") if text is None else text
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    lines = [line[4:] for line in section.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    commands = [re.sub(r"\s+", " ", re.sub(r"\s+#.*", "", line)).strip() for line in lines]
    return [each for each in commands if not wanted or each.startswith(wanted)]


def commands_of(name: str, text: str | None = None) -> list[str]:
    """The README's commands that a transcript runs."""
    return [
        command
        for heading, wanted in TRANSCRIPTS[name].sections
        for command in readme_commands(heading, wanted, text)
    ]


class Shell:
    """One bash in a folder, for one command after the other."""

    def __init__(self, folder: Path) -> None:
        kept = ("PATH", "HOME", "LANG", "TMPDIR", *(name for name in os.environ if name.startswith("PIP_")))
        env = {name: os.environ[name] for name in kept if name in os.environ}
        env |= {"COLUMNS": "110", "NO_COLOR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        self._process = subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=folder, env=env, text=True, errors="replace",
        )  # fmt: skip

    def run(self, command: str) -> tuple[str, int, float]:
        """What it printed, its exit code, and the seconds that it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        started = time.monotonic()
        self._process.stdin.write(f"{command} < /dev/null\ncode=$?; echo; echo {_END} $code\n")
        self._process.stdin.flush()
        lines: list[str] = []
        for line in self._process.stdout:
            if line.startswith(_END):
                break
            lines.append(line)
        else:
            raise SystemExit(f"the shell ended in {command!r}:\n{''.join(lines)}")
        return "".join(lines), int(line.split()[-1]), time.monotonic() - started


def shown(text: str, masks: dict[str, str]) -> str:
    """Output for the page: without the machine's paths and pip's sources, long ones without their middle."""
    for path, name in masks.items():
        text = text.replace(path, name)
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.rstrip("\n").splitlines()]
    lines = [
        line
        for line in lines
        if not re.match(
            r"\s*(Looking in (indexes|links)|WARNING: Location |Stored in directory: |━|─* [\d.]+/)", line
        )
    ]
    lines = [re.sub(r"(Processing|Downloading) \S*/", r"\1 ", line) for line in lines]
    if len(lines) > LONGEST:
        cut = len(lines) - LONGEST
        lines = [*lines[: LONGEST // 3], f"… ({cut} more lines)", *lines[-(LONGEST - LONGEST // 3) :]]
    return "\n".join(lines).strip("\n")


def duration(seconds: float) -> str:
    """`3.2 s` or `2:05 min`."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02} min"


def page(name: str, folder: Path) -> str:
    """Run a transcript in a folder, and write its page."""
    made = TRANSCRIPTS[name]
    checkout = folder / "eddecode"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    shell = Shell(checkout)
    masks = {str(checkout): "~/eddecode", str(folder): "~", sys.base_prefix: "/usr", str(Path.home()): "~"}
    blocks, total = [], 0.0
    for command in [*made.before, *commands_of(name)]:
        output, code, seconds = shell.run(command)
        total += seconds
        text = shown(output, masks)
        block = "\n".join(["```console", f"$ {command}", *([text] if text else []), "```"])
        blocks.append(f"{block}\n\n{duration(seconds)}, exit code {code}.\n")
        print(f"{duration(seconds):>10}  {code}  {command}", file=sys.stderr, flush=True)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}, Python {platform.python_version()}"
    head = (
        f"# {made.title}\n\n{made.about}\n\n"
        f"Made by `python docs/make_transcript.py {name}` on {time.strftime('%Y-%m-%d')}: {machine}; others ran "
        f"beside it. Long output is cut in the middle. {duration(total)} in all.\n"
    )
    return "\n".join([head, *blocks])


def main() -> None:
    """Run the transcript that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=sorted(TRANSCRIPTS))
    parser.add_argument("--keep", type=Path, help="a new folder to work in, which stays")
    asked = parser.parse_args()
    folder = asked.keep or Path(tempfile.mkdtemp(prefix="transcript"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        text = page(asked.name, folder.resolve())
    finally:
        if asked.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    (ROOT / "docs" / f"transcript-{asked.name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
