"""The plan of a cluster: against arithmetic by hand, a simulation of slots, and its own limits."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from typer.testing import CliRunner

from benchmarks.cluster import lengths, simulated_hours
from eddecode.audit.stats.cluster import GPUS, Steps, Work, gpus_per_pair, parse_steps, plan_cluster
from eddecode.cli.commands import app
from eddecode.errors import ConfigError

OWN = Steps({8: 10.0, 64: 24.0}, 0.0, "given")


def test_by_hand() -> None:
    """1,000 prompts × 2 × 4 of 100 tokens on 2 workers of 2 GPUs, 64 rows at 24 ms for one GPU."""
    work = Work(1000, 2, 4, 100.0, 70e9, longest=300, prompt_tokens=50, judged=8.0)
    plan = plan_cluster(work, OWN, gpus=5, per_pair=2, price=3.0)
    decoding = 4000 * 100 / 64 * 0.012
    prefill = 2 * 70e9 * 500 * 50 / (500e12 * 2)
    assert plan.decoding * 3600 == pytest.approx(decoding)
    assert plan.prefill * 3600 == pytest.approx(prefill)
    assert plan.last * 3600 == pytest.approx(300 * 0.012)
    assert plan.start * 3600 == pytest.approx(140.0)
    assert plan.judging * 3600 == pytest.approx(500.0)
    assert plan.hours * 3600 == pytest.approx(decoding + prefill + 3.6 + 140 + 500)
    assert (plan.gpus, plan.cost) == (4, pytest.approx(4 * plan.hours * 3))
    assert plan.writes == pytest.approx(2 * 64 / 1.2)
    assert [bend.split(":")[0] for bend in plan.bends] == [
        "87% of the time is the judge".replace("87", f"{100 * 500 / (3600 * plan.hours):.0f}"),
        "1 GPUs are idle",
    ]


@pytest.mark.parametrize(
    ("rows", "milliseconds"), [(1, 10.0), (8, 10.0), (36, 17.0), (64, 24.0), (128, 48.0)]
)
def test_steps_between_and_beyond_what_was_measured(rows: int, milliseconds: float) -> None:
    assert OWN.seconds(rows, 1e9) == pytest.approx(milliseconds / 1e3)
    scaled = Steps(OWN.milliseconds, 2e9, "")
    assert scaled.seconds(rows, 6e9) == pytest.approx(3 * milliseconds / 1e3)


def test_pairs_take_a_power_of_two_of_gpus() -> None:
    assert [gpus_per_pair(size * 1e9, 80e9) for size in (1, 64, 65, 129, 257)] == [1, 1, 2, 4, 8]


def test_fewer_completions_than_slots_take_shorter_steps() -> None:
    plan = plan_cluster(Work(8, 1, 1, 100.0, 1e9), OWN, gpus=1, per_pair=1)
    assert plan.decoding * 3600 == pytest.approx(100 * 0.010)


@pytest.mark.parametrize("workers", [1, 8, 64])
def test_a_simulation_of_slots_agrees(workers: int) -> None:
    """Every completion has a length of its own, so that the slowest worker has more than its share of the tokens."""
    tokens = lengths(40_000)
    work = Work(2000, 4, 5, float(tokens.mean()), 13.2e9, longest=float(tokens.max()))
    plan = plan_cluster(work, GPUS["h200"].steps[0], workers, 1)
    found = simulated_hours(GPUS["h200"].steps[0], work, workers, 64, tokens)
    spread = 3 * float(tokens.std() / tokens.mean()) / math.sqrt(len(tokens) / workers)  # of a worker's share
    assert plan.decoding < found < (plan.decoding + plan.last) * (1 + spread)
    assert plan.decoding + plan.last < 1.5 * found


@pytest.mark.parametrize("text", ["", "64", "64:x", "0:5", "64:-1", "64:nan", "64:1;8:2"])
def test_step_times_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected ROWS:MILLISECONDS"):
        parse_steps(text)
    with pytest.raises(ConfigError, match="number of rows 64 is given twice"):
        parse_steps("64:1,64:2")


# Command line ------------------------------------------------------------------------------------------------------


def plan(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", *options])
    return result.exit_code, " ".join(result.output.split())


def test_the_command_says_gpus_hours_and_cost() -> None:
    options = (
        "--cluster",
        "h200",
        "--parameters",
        "140",
        "--prompts",
        "10000",
        "--conditions",
        "12",
        "--price",
        "4",
    )
    code, text = plan(*options, "--json")
    found = json.loads(text)["cluster"]
    assert (code, found["completions"], found["per_pair"], len(found["sources"])) == (0, 120_000, 4, 2)
    first = found["sources"][0]["plans"]
    assert [each["gpus"] for each in first] == [4 * 2**i for i in range(7)]
    assert all(
        a["hours"] > b["hours"] and a["gpu_hours"] < b["gpu_hours"] for a, b in itertools.pairwise(first)
    )
    assert first[0]["cost"] == pytest.approx(4 * first[0]["gpu_hours"])
    code, text = plan(*options)
    assert code == 0
    assert "the product's was not measured" in text
    assert "At 256 GPUs: 70% of the time is reading the weights" in text


def test_own_gpus_take_own_step_times() -> None:
    code, text = plan("--cluster", "80GB", "--parameters", "14", "--gpus", "4", "--step", "64:20", "--json")
    found = json.loads(text)["cluster"]
    assert (code, found["per_pair"], found["sources"][0]["source"]) == (0, 1, "given")
    assert found["sources"][0]["step_ms"] == pytest.approx(20)
    assert math.isfinite(found["sources"][0]["plans"][0]["hours"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cluster", "h200"), "needs the size of the pair: --parameters"),
        (
            ("--cluster", "80GB", "--parameters", "14"),
            "no step times were measured on a GPU of 80GB; give those of",
        ),
        (("--cluster", "h20", "--parameters", "14"), "did you mean h200?"),
        (
            ("--cluster", "h200", "--parameters", "140", "--gpus", "2"),
            "one pair of 280 GB needs 4 GPUs, and 2 are",
        ),
        (
            ("--cluster", "h200", "--parameters", "14", "--prompts", "0"),
            "--prompts is 0; expected a number above 0",
        ),
        (
            ("--cluster", "h200", "--parameters", "14", "--rows", "0"),
            "--rows is 0; expected a number above 0",
        ),
    ],
)
def test_what_cannot_be_planned_is_named(options: tuple[str, ...], message: str) -> None:
    code, text = plan(*options)
    assert code == 2
    assert message in text
