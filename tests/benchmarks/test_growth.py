"""The growth of a step's cost: what is timed, what is added to, and what is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import growth, plot
from benchmarks.growth import EngineSteps, GrowthPoint, InterleavedProcessor, Steps
from benchmarks.pairs import BenchPair, build
from eddecode.sampler import Sampler
from helpers.benching import SHAPE

pytestmark = pytest.mark.usefixtures("cheap_collection")


@pytest.fixture(scope="module")
def pair() -> BenchPair:
    return build(SHAPE, "float32")


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small panels, on a clock that nobody waits for."""
    point = GrowthPoint(prompt=5, shape=SHAPE)
    monkeypatch.setattr(
        growth,
        "PANELS",
        {
            "batch": {"1": point, "3": GrowthPoint(rows=3, prompt=5, shape=SHAPE, alternative=False)},
            "alphas": {"1": point, "2": GrowthPoint(alphas=2, prompt=5, shape=SHAPE)},
        },
    )
    monkeypatch.setattr("benchmarks.measure.BUFFER_BYTES", {"cpu": 1 << 22})


def test_a_step_of_each_in_turn(pair: BenchPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of ours between two of (b)'s, and nothing of the one in the other's time."""
    now, log = [0.0], []

    def takes(name: str, seconds: float) -> Any:
        def step(*args: Any) -> None:
            log.append(name)
            now[0] += seconds

        return step

    monkeypatch.setattr(growth.time, "perf_counter", lambda: now[0])
    point = GrowthPoint(rows=2, prompt=5, shape=SHAPE)
    ours = EngineSteps(Sampler(pair.model_pair()), point, steps=4)
    monkeypatch.setattr(ours.engine, "step", takes("ours", 5.0))
    follow = InterleavedProcessor.__mro__[1].__call__
    monkeypatch.setattr(
        InterleavedProcessor.__mro__[1], "__call__", lambda *args: (takes("(b)", 2.0)(), follow(*args))[1]
    )
    found = growth.alternative_step(pair, point, 0.5, ours, steps=3)
    assert (
        log == ["(b)", "ours"] * 4 + ["(b)"] * 2
    )  # the first ends the prefill; ours has no step left at the end
    assert found == 2.0
    assert ours.steps.seconds == [5.0] * 4


def test_the_first_steps_do_not_count() -> None:
    assert Steps([9.0, 9.0, 1.0, 2.0, 4.0]).median == 2.0


@pytest.mark.parametrize(
    "point", [GrowthPoint(rows=3, shape=SHAPE, prompt=6), GrowthPoint(alphas=4, shape=SHAPE, prompt=6)]
)
def test_all_rows_are_in_place_before_a_step_is_timed(pair: BenchPair, point: GrowthPoint) -> None:
    ours = EngineSteps(Sampler(pair.model_pair()), point, steps=3)
    for left in (2, 1, 0, 0):
        ours.turn()
        assert ours.left == left
        assert len(ours.engine.scheduler.running) == point.rows * point.alphas
    assert len(ours.steps.seconds) == 3
    with pytest.raises(RuntimeError, match="1 of 3 rows decode together"):
        EngineSteps(
            Sampler(pair.model_pair(), max_slots=1), GrowthPoint(rows=3, shape=SHAPE, prompt=6), steps=3
        )


def test_parameters_are_those_of_the_model(pair: BenchPair) -> None:
    assert growth.parameters(SHAPE) == sum(p.numel() for p in pair.base.parameters())


def test_rounds_are_added_until_there_are_enough(
    panels: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, drawn = tmp_path / "growth.json", tmp_path / "growth.svg"
    arguments = ["--dtype", "float32", "--threads", str(torch.get_num_threads()), "--out", str(out)]
    assert growth.main([*arguments, "--rounds", "1", "--vary", "batch"]) == 0
    first = json.loads(out.read_text())["panels"]["batch"]
    assert growth.main([*arguments, "--rounds", "2", "--seconds", "0"]) == growth.MORE_TO_DO
    assert json.loads(out.read_text())["panels"]["batch"] == first
    assert "3 rounds are missing" in capsys.readouterr().out
    assert growth.main([*arguments, "--rounds", "2", "--picture", str(drawn)]) == 0
    panels_ = json.loads(out.read_text())["panels"]
    for before, after in zip(first, panels_["batch"], strict=True):
        assert {name: len(rounds) for name, rounds in after["seconds"].items()} == dict.fromkeys(
            before["seconds"], 2
        )
        assert after["seconds"]["eddecode"][0] == before["seconds"]["eddecode"][0]
    assert [sorted(r["seconds"]) for r in panels_["batch"]] == [["eddecode", "processor"], ["eddecode"]]
    assert [r["alphas"] for r in panels_["alphas"]] == [1, 2]
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    text = drawn.read_text(encoding="utf-8")
    for words in (
        "milliseconds per decode step",
        "completions in the batch",
        "for one prompt",
        "(b) logits processor",
    ):
        assert words in text
    plot.draw_growth(json.loads(out.read_text()), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == drawn.read_bytes()
    with pytest.raises(SystemExit, match="was measured with"):
        growth.main([*arguments, "--dtype", "bf16"])
