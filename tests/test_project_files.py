"""Project files that repeat a fact of pyproject.toml or constraints.txt: they must agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line
)


def test_pre_commit_uses_the_versions_of_the_constraints() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    assert f"rev: v{CONSTRAINTS['ruff']} " in text
    assert f"import-linter=={CONSTRAINTS['import-linter']}]" in text


def test_citation_and_changelog_name_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\n## [{version}]\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_a_checkout_that_is_not_installed_knows_its_version() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import eddecode; print(eddecode.__version__)"
    alone = [sys.executable, "-I", "-S", "-c", code]  # no packages, as where a checkout is run as it is
    done = subprocess.run(alone, capture_output=True, text=True, check=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert done.stdout.strip() == version


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_the_project_files_lead_to_files(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert not [link for link in links if not (ROOT / link).exists()]
