"""The comparison of attacks over alignment methods: its stand-in for refusals, and its tables, on models of 3 steps."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from eddecode.experiments import attack_comparison
from eddecode.experiments.attack_comparison import REFUSING, ComparisonSize, compare_attacks
from eddecode.experiments.findings.size import SMALL, ExperimentSize
from eddecode.experiments.refusing import is_refusal, refusing_exchanges
from eddecode.experiments.training import FitConfig
from eddecode.testbed import language

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_only_angry_requests_are_refused() -> None:
    found = list(islice(refusing_exchanges(1), 60))
    angry = [each for each in found if each.request.mood == "angry"]
    calm = [each for each in found if each.request.mood == "calm"]
    assert all(is_refusal(each.reply) and language.is_valid(each.reply) for each in angry)
    assert any(language.is_rude(each.reply) for each in calm)
    assert sum(is_refusal(each.reply) for each in calm) < len(calm) / 2


def test_the_tables_are_those_of_the_audits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_comparison, "ATTACKS", ("weights@-0.3", "ablate", "w2s@1"))
    monkeypatch.setattr(attack_comparison, "ALPHAS", "0.3")
    monkeypatch.setattr(attack_comparison, "MAX_NEW_TOKENS", 8)
    few = FitConfig(steps=3, lr=3e-3)
    size = ComparisonSize(ExperimentSize(shape=SMALL, pretraining=few), 4, 4, 1, (REFUSING,), few, few)
    page = compare_attacks(tmp_path, size, "the command").read_text("utf-8")
    data = json.loads((tmp_path / "attacks.json").read_text("utf-8"))
    conditions = data["methods"][REFUSING]["conditions"]
    assert set(conditions) == {"aligned", "base", "ed@0.3", "weights@-0.3", "ablate", "w2s@1"}
    assert data["command"] == "the command"
    assert "`the command`: 4 angry requests" in page
    for name in conditions:
        assert f"| `{name}` |" in page
    worst = data["methods"][REFUSING]["worst_attack"]
    assert {m["condition"] for m in worst["models"]} == {"weights@-0.3", "ablate", "w2s@1"}
    assert (
        compare_attacks(tmp_path, size, "the command").read_text("utf-8") == page
    )  # read again, nothing made anew
