"""The code blocks of the documents run: Python on tiny models, files by their readers, commands on a run of a stub.

What loads or decodes models is not run here, but listed with the reason; docs/integrations.md runs whole in
tests/integrations, the README's first hour in docs/make_transcript.py, and every option of every command is checked by
tests/test_docs.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from eddecode.audit.policy import Policy
from eddecode.cli import app
from eddecode.lab import bundled_pair
from helpers import tiny
from helpers.paths import ROOT
from helpers.stub_runs import config, run

pytestmark = pytest.mark.usefixtures("no_pictures")

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    "commands.md": "made from the program, and compared with it",
    "integrations.md": "every block runs in tests/integrations",
    "transcript-hour.md": "a record",
    "transcript-inspect.md": "a record",
}
# Commands that need no model: run here on a finished run of a stub, in place of the run that the page names.
RUN = ("report", "gate", "export", "compare", "docs", "label-sheet", "init", "policy", "plan", "runs")
NOT_RUN = {
    "audit": "decodes, or loads models",
    "demo": "decodes for a minute; tests/cli/test_demo.py runs it",
    "doctor": "measures the machine; tests/cli run it",
    "generate": "decodes",
    "import": "needs Inspect's logs; docs/integrations.md is run",
    "judge": "loads a guard, or needs labels; tests/cli run it",
    "merge": "needs the shards of an audit; tests/audit/test_shards.py",
    "pair": "loads models",
    "preview": "loads tokenizers; tests/cli run it",
    "utility": "loads models and benchmarks",
}
FILES = {"prompts.jsonl": '{"prompt": "where is my order?"}\n', "policy.toml": "max_reversal = 0.05\n"}


def fenced(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```([a-z]*)\n(.*?)^```", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The eddecode commands of a page's blocks, without comments, pipes and redirections."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    lines = [line for _, block in fenced(page) for line in block.replace("\\\n", " ").splitlines()]
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    found = [match[1] for line in lines if (match := re.match(r"\s*(?:\$ )?(eddecode [a-z].*)", line))]
    return [re.split(r"\s+(?:#|>>|\|\||\|)", command)[0].strip() for command in found]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "run"
    run(config(out))
    return out


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in ELSEWHERE], ids=lambda page: page.name)
def test_commands_that_need_no_model_run(
    page: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "release").mkdir()
    shutil.copytree(finished, tmp_path / "results" / "first")
    for name, text in {**FILES, "release/gate.toml": FILES["policy.toml"]}.items():
        (tmp_path / name).write_text(text)
    for command in commands(page):
        words = shlex.split(command)[1:]
        assert (words[0] in RUN) != (words[0] in NOT_RUN), command  # a new one belongs to one of the two
        if words[0] not in RUN or "…" in command or "|" in command:
            continue
        if words[0] == "policy":
            toml = '[[judge]]\nkind = "lexicon"\n'
            (tmp_path / "audit.toml").write_text(
                f'base = "b"\naligned = "a"\nprompts = "prompts.jsonl"\nout = "run"\n{toml}'
            )
            (tmp_path / "b").mkdir(exist_ok=True)
            (tmp_path / "policy.toml").unlink()
        if words[0] == "init":
            (tmp_path / "audit.toml").unlink(missing_ok=True)
        for word in words[1:]:
            names_run = re.fullmatch(r"(?:[\w-]+/)?(?:[\w-]*run|imported|RUN|PILOT_RUN|first|bundled)", word)
            if names_run and not (tmp_path / word).exists():
                shutil.copytree(finished, tmp_path / word)
        result = CliRunner().invoke(app, words)
        expected = (0, 1, 3) if words[0] == "gate" else (0, 2) if words[0] == "policy" else (0,)
        assert result.exit_code in expected, (command, result.output)
        if words[0] == "policy":  # and the user sets a limit
            (tmp_path / "policy.toml").write_text(FILES["policy.toml"])


def test_files_on_the_page_of_the_gate_are_read(tmp_path: Path) -> None:
    kinds = dict(fenced(ROOT / "docs" / "gate.md"))
    policy = tmp_path / "policy.toml"
    policy.write_text(next(text for kind, text in fenced(ROOT / "docs" / "gate.md") if kind == "toml"))
    assert Policy.read(policy).pin.samples == 4
    assert yaml.safe_load(kinds["yaml"])


def test_python_on_the_page_of_scores_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for made, name in zip(tiny.save_pair(tmp_path), ("base-checkpoint", "aligned-checkpoint"), strict=True):
        shutil.copytree(made, tmp_path / name)
    names: dict[str, Any] = {}
    for kind, block in fenced(ROOT / "docs" / "scoring.md"):
        if kind == "python":
            exec(compile(block, "docs/scoring.md", "exec"), names)
    assert len(names["scores"]) == 3


def test_python_on_the_page_of_attacks_writes_two_prompt_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = bundled_pair().prompts.read_text("utf-8").splitlines(keepends=True)[:60]
    (tmp_path / "p60.jsonl").write_text("".join(known), "utf-8")
    (block,) = (text for kind, text in fenced(ROOT / "docs" / "attacks.md") if kind == "python")
    exec(compile(block, "docs/attacks.md", "exec"), {})
    angry, calm = (
        set((tmp_path / f"{mood}.jsonl").read_text("utf-8").splitlines()) for mood in ("angry", "calm")
    )
    assert len(angry) == len(calm) == 40
    assert not angry & calm
    assert not (angry | calm) & {line.strip() for line in known}


def test_every_block_has_a_language_that_is_checked() -> None:
    for page in PAGES:
        if page.name in ELSEWHERE:
            continue
        for kind, block in fenced(page):
            assert kind in {"python", "toml", "yaml", "sh", "bash", "text", "json", ""}, (page.name, kind)
            if kind == "python":
                assert page.name in {"README.md", "scoring.md", "attacks.md"}, (
                    f"run it in a test: {page.name}"
                )
            if kind == "toml":
                tomllib.loads(block)
