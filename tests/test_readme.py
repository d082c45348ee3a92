"""The README's example runs as pasted, and the files that it points to exist."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import ROOT

_spec = importlib.util.spec_from_file_location("make_transcript", ROOT / "docs" / "make_transcript.py")
assert _spec is not None
assert _spec.loader is not None
make_transcript: Any = importlib.util.module_from_spec(_spec)
sys.modules["make_transcript"] = make_transcript
_spec.loader.exec_module(make_transcript)

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs_as_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0.0", "0.1", "1.0", "1.1"]
    assert all(re.search(r"reward [+-]\d+\.\d nats: \S", line) for line in lines)


@pytest.mark.parametrize("name", sorted(make_transcript.TRANSCRIPTS))
def test_the_transcripts_are_of_its_commands(name: str) -> None:
    """They are made anew by `python docs/make_transcript.py NAME`."""
    page = (ROOT / "docs" / f"transcript-{name}.md").read_text("utf-8")
    before = list(make_transcript.TRANSCRIPTS[name].before)
    assert re.findall(r"^\$ (.*)$", page, flags=re.MULTILINE) == [*before, *make_transcript.commands_of(name)]
    codes = [
        int(code) for code in re.findall(r"^[\d.:]+ (?:s|min), exit code (\d+)\.$", page, flags=re.MULTILINE)
    ]
    assert len(codes) == len(before) + len(make_transcript.commands_of(name))
    verdicts = {"FAIL": 1, "INCONCLUSIVE": 3}
    said = [verdicts[word] for word in re.findall(r"^(FAIL|INCONCLUSIVE): ", page, flags=re.MULTILINE)]
    assert [code for code in codes if code != 0] == said  # the gate's, and no others
    assert not re.search(r"/work|/root|/opt|/tmp/\w", page)  # of the machine


def test_a_changed_command_would_be_found() -> None:
    changed = README.replace("gate demo-run", "gate other-run")
    assert make_transcript.commands_of("hour", changed) != make_transcript.commands_of("hour")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_what_it_points_to_is_there(target: str) -> None:
    assert (ROOT / target).exists()
