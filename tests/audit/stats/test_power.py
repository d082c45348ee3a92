"""How many prompts: the plan against audits that are simulated with them, and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from eddecode.audit import AuditConfig, audit
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.stats.clusters import Clusters
from eddecode.audit.stats.coverage import promised_power
from eddecode.audit.stats.power import (
    Expected,
    decision_power,
    decode_cost,
    prompts_for_decision,
    prompts_for_width,
)
from eddecode.audit.stats.proportions import clustered_rate, wilson
from eddecode.audit.stats.simulation import World
from eddecode.cli import app
from eddecode.cli.plan import rates_from_run
from eddecode.errors import ConfigError
from eddecode.outputs import Completion
from helpers.stub_sampler import StubSampler


def test_the_smallest_number_for_a_width() -> None:
    """One sample per prompt: by hand, trying every n."""
    by_hand = next(n for n in range(1, 10_000) if max(_wilson(r, n) for r in (0.3, 0.5)) <= 0.1)
    assert prompts_for_width(Expected(0.3, 0.5), 0.1) == by_hand


def _wilson(rate: float, n: float) -> float:
    low, high = wilson(rate, n)
    return high - low


def test_more_samples_help_less_the_more_they_agree() -> None:
    one = prompts_for_width(Expected(0.3, 0.5, samples=1), 0.1)
    four, same = (prompts_for_width(Expected(0.3, 0.5, 4, rho), 0.1) for rho in (0.0, 1.0))
    assert four == pytest.approx(one / 4, abs=1)
    assert same == one


def test_simulated_audits_are_as_wide_as_planned() -> None:
    """Mean width of the wider rate's interval within 10% of the plan."""
    expected = Expected(0.3, 0.5, 4, 0.3)
    prompts = prompts_for_width(expected, 0.15)
    widths = []
    for _, ed in World((0.3, 0.5), prompts, 4).audits(60, seed=1):
        rate = clustered_rate(ed.pairs())
        widths.append(rate.high - rate.low)
    assert sum(widths) / len(widths) == pytest.approx(0.15, rel=0.1)


@pytest.mark.parametrize(("ed", "limit"), [(0.5, 0.1), (0.35, 0.15)])
def test_simulated_audits_decide_as_often_as_planned(ed: float, limit: float) -> None:
    """With what conditions share measured, as a pilot does, 75% to 85% of the audits decide, but for the error of 300.

    What is promised is within 5 points of what happens: the bounds are those of the gate.
    """
    share = promised_power(0.3, ed, 4, limit)(300, 2)
    assert abs(sum(share) / 300 - 0.8) < 0.05 + 2 * math.sqrt(0.8 * 0.2 / 300)


def test_a_plan_without_a_pilot_asks_for_more() -> None:
    cautious, known = (prompts_for_decision(Expected(0.3, 0.35, 4, 0.3, k), 0.15) for k in (0.0, 0.5))
    assert cautious > known


def test_power_and_prompts_are_inverse() -> None:
    expected = Expected(0.3, 0.5, 4, 0.2)
    prompts = prompts_for_decision(expected, 0.1, 0.9)
    assert decision_power(expected, 0.1, prompts) >= 0.9 > decision_power(expected, 0.1, prompts - 2)


def test_cost() -> None:
    cost = decode_cost(100, 4, 10, 50, parameters=14e9, speed=1000, prompt_tokens=30)
    assert (cost.completions, cost.tokens, cost.seconds) == (4000, 200_000, 200)
    assert cost.operations == pytest.approx(2 * 14e9 * (200_000 + 3000))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Expected(1.3, 0.5), "the base's rate is 1.3; expected a share"),
        (lambda: Expected(0.3, float("nan")), "rate of ED is nan"),
        (lambda: Expected(0.3, 0.5, samples=0), "samples is 0"),
        (lambda: prompts_for_width(Expected(0.3, 0.5), 1.5), "the width is 1.5"),
        (lambda: prompts_for_width(Expected(0.3, 0.5), 1e-9), "more than 10,000,000 prompts"),
        (lambda: prompts_for_decision(Expected(0.3, 0.4), 0.1), "which is the limit itself"),
        (lambda: prompts_for_decision(Expected(0.3, 0.5), 2), "the limit is 2"),
        (lambda: prompts_for_decision(Expected(0.3, 0.5), 0.1, 1), "the power is 1"),
    ],
)
def test_what_no_plan_can_be_made_of(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ConfigError, match=message):
        call()


# The command


def invoke(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", *options], env={"COLUMNS": "80"})
    return result.exit_code, result.output


def test_the_command_says_what_the_functions_do() -> None:
    options = (
        "--base-rate",
        "0.3",
        "--ed-rate",
        "0.55",
        "--samples",
        "4",
        "--max-reversal",
        "0.1",
        "--width",
        "0.08",
    )
    code, out = invoke(*options)
    assert code == 0
    expected = Expected(0.3, 0.55, 4, 0.3, alphas=5)
    words = " ".join(out.split())
    assert (
        f"{prompts_for_width(expected, 0.08):,} prompts: rates' 95% intervals at most 8 points wide" in words
    )
    assert (
        f"{prompts_for_decision(expected, 0.1):,} prompts: a verdict that the reversal is over 10 points"
        in words
    )
    assert max(map(len, out.splitlines())) <= 80
    found = json.loads(invoke(*options, "--json", "--parameters", "14", "--speed", "500")[1])
    assert found["decision"]["prompts"] == prompts_for_decision(expected, 0.1)
    assert found["decision"]["power"] >= 0.8
    assert found["width"]["cost"]["operations"] == 2 * 14e9 * found["width"]["cost"]["tokens"]


def test_the_command_learns_from_a_pilot(tmp_path: Path) -> None:
    config = AuditConfig(
        base="b",
        aligned="a",
        prompts=[f"prompt {i}" for i in range(40)],
        out=tmp_path,
        alphas="0.3,1",
        samples=3,
    )
    summary = audit(config, sampler=StubSampler(), judges=[LexiconJudge(["idiot"])])
    found = json.loads(invoke(str(tmp_path), "--json")[1])
    assert found["expected"]["base"] == summary.harm_rate("base").rate
    assert found["expected"]["samples"] == 3
    assert found["conditions"] == 4
    assert summary.headline.plain is not None
    assert found["expected"]["ed"] == summary.headline.plain.rate
    assert 0 <= found["expected"]["correlation"] <= 1


class Drawn:
    """A sampler whose completions are those of a simulated audit: per prompt so many rude ones of four."""

    def __init__(self, base: Clusters, ed: Clusters) -> None:
        self.flagged = {0.0: base.flagged, 1.0: ed.flagged}

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
        for i, (prompt, p) in enumerate(zip(prompts, params, strict=True)):
            rude = self.flagged.get(float(p.alpha), np.zeros(len(prompts)))[int(str(prompt).split()[1])]
            for sample in range(p.n):
                text = "you idiot" if sample < rude else "thank you"
                yield Completion(i, sample, p.alpha, text, list(range(12)), "eos", -9.0, -9.0)


def test_a_pilot_shows_what_base_and_ed_share(tmp_path: Path) -> None:
    """From a pilot of 400 prompts, κ and ρ are near those of the world, and so is the plan.

    κ of the world is that of one audit of 20,000 prompts. The standard error of a correlation over 400 prompts is below
    0.05.
    """
    world = World((0.3, 0.5), 20_000, 4)
    (large,) = world.audits(1, 3)
    true = float(np.corrcoef(large[0].flagged, large[1].flagged)[0, 1])
    (pilot,) = World((0.3, 0.5), 400, 4).audits(1, 4)
    prompts = [f"prompt {i}" for i in range(400)]
    config = AuditConfig(base="b", aligned="a", prompts=prompts, out=tmp_path, alphas="1", samples=4)
    audit(config, sampler=Drawn(*pilot), judges=[LexiconJudge(["idiot"])])
    found = rates_from_run(tmp_path)
    assert found["shared"] == pytest.approx(true, abs=0.15)
    assert found["correlation"] == pytest.approx(0.3, abs=0.15)
    known = Expected(found["base"], found["ed"], 4, 0.3, true)
    learned = Expected(found["base"], found["ed"], 4, found["correlation"], found["shared"])
    wanted = prompts_for_decision(known, 0.1)
    assert prompts_for_decision(learned, 0.1) == pytest.approx(wanted, rel=0.25)
    words = " ".join(invoke(str(tmp_path))[1].split())
    assert f"base and ED share {found['shared']:.2f} of a prompt's variation" in words


def test_the_command_explains_itself(tmp_path: Path) -> None:
    code, out = invoke(str(tmp_path / "nowhere"))
    assert code == 2
    assert "there is no summary.json" in " ".join(out.split())
    code, out = invoke("--base-rate", "0.3", "--ed-rate", "0.4")
    assert code == 2
    assert "which is the limit itself" in " ".join(out.split())
