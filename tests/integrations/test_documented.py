"""docs/integrations.md: every code block runs as it is, and what it says about the result holds."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.paths import ROOT

pytestmark = pytest.mark.slow


def test_every_block_runs(documented: Any) -> None:
    page = (ROOT / "docs" / "integrations.md").read_text("utf-8")
    ran = [line for line in documented.output.splitlines() if line.startswith("ran: ")]
    for command in ("inspect eval", "inspect score", "eddecode import", "eddecode gate", "eddecode export"):
        assert any(line.startswith(f"ran: {command}") for line in ran), command
    assert any(line.startswith("ran: python -m eddecode.integrations.lm_eval") for line in ran)
    assert sum(line == "ran: python" for line in ran) == page.count("```python")


def test_the_gate_is_inconclusive_and_the_benchmark_has_a_table(documented: Any) -> None:
    assert "INCONCLUSIVE: The sweep has α's from 0.6 to 0.6" in documented.output
    assert "Benchmarks against α" in documented.output
    assert len(list((documented.folder / "exported").glob("*.eval"))) == 3
