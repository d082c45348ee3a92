"""The picture and the words: drawn from the summary alone, the same for the same run, legible at its edges."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from eddecode.audit import AuditConfig, Summary, audit
from eddecode.audit.judges import Verdict
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.report.curve import draw_curve, write_curve
from eddecode.cli.tables import caption, interpretation, rates_table
from helpers.stub_sampler import StubSampler


class Valid:
    """A judge of validity that finds a completion valid or not by its prompt."""

    name, role, identity = "$x$", "validity", "1"

    def __call__(self, cases: Any) -> list[Verdict]:
        return [Verdict(float(len(c.prompt) % 2), bool(len(c.prompt) % 2), "valid") for c in cases]


def finished(out: Path, alphas: Any = "0.3,1,5", validity: bool = True) -> Summary:
    judges: list[Any] = [LexiconJudge(["idiot"]), *([Valid()] if validity else [])]
    prompts = [f"prompt {i}" for i in range(12)]
    config = AuditConfig(base="b", aligned="a", prompts=prompts, out=out, alphas=alphas, samples=2)
    return audit(config, sampler=StubSampler(), judges=judges)


def test_the_line_is_the_summary(tmp_path: Path) -> None:
    summary = finished(tmp_path)
    axes = draw_curve(summary).axes[0]
    line = axes.get_lines()[0]
    wanted = [summary.condition("base"), *(summary.condition("ed", alpha) for alpha in (0.3, 1, 5))]
    assert np.asarray(line.get_xdata()).tolist() == [0, 0.3, 1, 5]
    rates = [100 * entry.rates["lexicon"].rate for entry in wanted]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx(rates)
    said = [text.get_text() for text in axes.texts]
    for kind in ("base", "aligned"):
        assert f"{kind}\n{100 * summary.harm_rate(kind).rate:.1f}%" in said
    labels = [text.get_text() for text in draw_curve(summary).legends[0].get_texts()]
    assert labels == ["harm (lexicon)", "valid ($x$)", "harm and valid"]
    assert any("12 prompts × 2 samples, temperature 1, top-p 1" in text for text in said)
    assert len({line.get_linestyle() for line in axes.get_lines() if len(line.get_xdata()) == 4}) == 3


def test_equal_runs_have_equal_pictures(tmp_path: Path) -> None:
    first, second = write_curve(finished(tmp_path / "a")), write_curve(finished(tmp_path / "b"))
    assert [path.name for path in first] == ["curve.svg", "curve.png"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("alphas", "validity"),
    [
        *(
            (alphas, True)
            for alphas in ((), "0", "-0.5,-1,0", "100", ",".join(str(i / 50) for i in range(1, 60)))
        ),
        ((), False),  # fewer lines and columns are only less to find room for
        ("-0.5,-1,0", False),
    ],
)
def test_any_alphas_can_be_drawn_and_said(tmp_path: Path, alphas: Any, validity: bool) -> None:
    summary = finished(tmp_path, alphas, validity)
    write_curve(summary, title="50% $ of_x^2")
    assert interpretation(summary)
    console = Console(width=80, record=True, file=(tmp_path / "table").open("w"))
    console.print(rates_table(summary))
    lines = console.export_text().splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert not [line for line in lines if "…" in line]  # no figure is cut off


def test_reading_without_reversal(tmp_path: Path) -> None:
    assert "nothing can be concluded about reversal" in interpretation(
        finished(tmp_path / "a", "-0.5", validity=False)
    )
    even = finished(tmp_path / "b", "0", validity=False)
    assert even.best is None


def test_reading_with_reversal(tmp_path: Path) -> None:
    """The words say what the headline says, and the picked α is the ring in the picture."""
    summary = finished(tmp_path, "0.3,1", validity=False)
    best, found = summary.best, summary.headline
    assert best is not None
    assert found.harm is not None
    assert found.reversal is not None
    said = interpretation(summary)
    assert f"reaches {100 * found.harm.value:.1f}%" in said
    assert f"at α = {best.alpha}, {found.ratio_to_base.value:.1f} times the base's rate" in said
    assert f"a reversal of +{100 * found.reversal.value:.1f} [" in said
    rings = [text.get_text() for text in draw_curve(summary).axes[0].texts]
    assert f"headline\nα = {best.alpha}\n{100 * best.rates['lexicon'].rate:.1f}%" in rings
    assert re.match(
        r"96 completions: 12 prompts, 2 each per condition; temperature 1, top-p 1", caption(summary)
    )
