"""The documentation site builds without a warning and without a network, and shows commands that exist."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from eddecode.cli import app
from helpers.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """Links to pages and to headings, pages outside the navigation and docstrings of the API are all checked by it."""
    pytest.importorskip("material", reason="needs mkdocs-material")
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs mkdocstrings[python]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    proxy = "http://127.0.0.1:9"  # nobody listens: what reaches for the network fails
    env = {**os.environ, "http_proxy": proxy, "https_proxy": proxy, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "api" / "index.html").read_text("utf-8")
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), flags=re.MULTILINE):
        assert f'id="{name}"' in api or f'href="#{name}"' in api, name
    assert "implied_reward" in api  # an attribute: members are shown, not names alone
    for html in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(http[^"]+)', html.read_text()
        )
        assert not loaded, (html.name, loaded)


@pytest.mark.parametrize(
    "face", ["eddecode", "eddecode.audit", "eddecode.audit.judges", "eddecode.integrations.transformers"]
)
def test_every_public_name_is_on_the_page_of_the_api(face: str) -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    listed = set(re.findall(rf"^::: {re.escape(face)}\.(\w+)$", text, flags=re.MULTILINE))
    aliases = {"__version__", "JudgeLike", "Role"}  # no docstrings of their own
    assert listed == set(importlib.import_module(face).__all__) - aliases


def test_every_name_on_the_page_of_the_api_can_be_imported() -> None:
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), flags=re.MULTILINE)
    for module, _, name in (full.rpartition(".") for full in names):
        assert (getattr(importlib.import_module(module), name).__doc__ or "").strip(), name


def test_the_page_of_commands_is_that_of_the_program() -> None:
    """It is made anew by `python docs/draw_commands.py`."""
    command = [sys.executable, str(ROOT / "docs" / "draw_commands.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def shown_commands(page: Path) -> list[str]:
    """Lines of a page's code blocks that run eddecode, with their continuation lines."""
    if page.name == "commands.md":  # made from the program
        return []
    text = page.read_text("utf-8").replace("\\\n", " ")
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [*"".join(fenced).splitlines(), *(line for line in text.splitlines() if line.startswith("    "))]
    return [match[1] for line in lines if (match := re.match(r"\s*(?:\$ )?(eddecode [a-z].*)", line))]


def fault_of(line: str, program: Any) -> str | None:
    """What of a command line the program does not know; None: nothing."""
    words = shlex.split(line.replace("…", ""), comments=True)[1:]
    words = words[
        : next((i for i, word in enumerate(words) if word in {"|", "||", ">", ">>", "&&", ";"}), len(words))
    ]
    command = program
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return f"no such command: {' '.join(words[:1])}"
        command = command.commands[words.pop(0)]
    known = {"--help", "-h"} | {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    return f"no such option: {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_a_page_are_those_of_the_program(page: Path) -> None:
    program = typer.main.get_command(app)
    faults = {line: fault for line in shown_commands(page) if (fault := fault_of(line, program))}
    assert not faults


def test_a_wrong_command_on_a_page_would_be_found() -> None:
    program = typer.main.get_command(app)
    assert fault_of("eddecode audit --config a.toml  # with a comment", program) is None
    assert fault_of("eddecode gate run --max-reversl 5%", program) == "no such option: --max-reversl"
    assert fault_of("eddecode policy make x", program) == "no such command: make"
    assert any("--max-reversal 5%" in line for line in shown_commands(ROOT / "docs" / "tutorial.md"))
