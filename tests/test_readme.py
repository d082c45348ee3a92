"""The README's example runs as pasted, and the files that it points to exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.paths import ROOT

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


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_what_it_points_to_is_there(target: str) -> None:
    assert (ROOT / target).exists()
