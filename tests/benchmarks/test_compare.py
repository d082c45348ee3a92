"""The benchmarks: what is measured, what follows from it, and how it is shown and kept."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.__main__ as benchmark_names
from benchmarks import compare as command
from benchmarks import memory, plot, results
from benchmarks.compare import Plan, estimate, one_round, prepare
from benchmarks.measure import interleave, ratios
from benchmarks.pairs import BenchPair, build
from benchmarks.registry import ALTERNATIVES, DEFAULTS, OURS
from benchmarks.results import Rounds
from benchmarks.roofline import bytes_to_read
from benchmarks.tasks import TASKS, NotAvailable, Work
from helpers.benching import SHAPE, work_on

pytestmark = pytest.mark.usefixtures("cheap_collection")


@pytest.fixture(scope="module", params=["full", "lora"])
def pair(request: pytest.FixtureRequest) -> BenchPair:
    return build(SHAPE, "float32", request.param)


# Measuring ----------------------------------------------------------------------------------------------------------


class Steady:
    """An alternative on a clock of its own: a fixed time, plus some per token and α."""

    def __init__(self, clock: list[float], per_token: float, log: list[str], name: str) -> None:
        self.clock, self.per_token, self.log, self.name = clock, per_token, log, name

    def complete(self, work: Work) -> list[list[int]]:
        self.log.append(self.name)
        self.clock[0] += len(work.alphas) * (3.0 + self.per_token * work.new_tokens)
        return [[0] * work.new_tokens] * work.rows

    def score(self, work: Work) -> list[list[float]]:
        raise NotAvailable("it only writes")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: now[0])
    return now


def test_an_estimate_is_exact_where_cost_is_linear(pair: BenchPair, clock: list[float]) -> None:
    alternative = Steady(clock, 0.5, [], "it")
    assert estimate(alternative, TASKS["T1"].work(pair)) == pytest.approx(3 + 0.5 * 128)
    assert estimate(alternative, TASKS["T3"].work(pair)) == pytest.approx(8 * (3 + 0.5 * 64))


def test_what_cannot_run_is_left_out_with_its_reason(pair: BenchPair, clock: list[float]) -> None:
    alternatives = {"fast": Steady(clock, 0.5, [], "fast"), "slow": Steady(clock, 5.0, [], "slow")}
    prepared = prepare(alternatives, TASKS["T1"].work(pair), limit=100)
    assert list(prepared.alternatives) == ["fast"]
    assert prepared.missing == {"slow": "left out: about 643 s a run, above the limit of 100 s"}
    scoring = prepare(alternatives, TASKS["T4"].work(pair), limit=100)
    assert scoring.missing == dict.fromkeys(alternatives, "not available: it only writes")


class SteadyBandwidth:
    def measure(self) -> float:
        return 1e6


def test_rounds_interleave_and_ratios_stay_within_a_round(pair: BenchPair, clock: list[float]) -> None:
    log: list[str] = []
    steady = {name: Steady(clock, 1.0, log, name) for name in ("x", "y", "z")}
    work, told = work_on(pair, "T1"), []

    def timer(name: str) -> float:
        start = clock[0]
        steady[name].complete(work)
        return clock[0] - start

    timers = {name: lambda name=name: timer(name) for name in steady}
    seconds = interleave(timers, 3, before_round=lambda: told.append(len(log)))
    assert "".join(log) == "xyzyzxzxy"  # everyone once a round, and everyone first once
    assert told == [0, 3, 6]
    assert seconds == dict.fromkeys(steady, [3.0 + work.new_tokens] * 3)
    assert ratios([2.0, 20.0], [1.0, 10.0]) == [2.0, 2.0]  # the machine became ten times slower
    rounds = one_round(Plan(steady), work, SteadyBandwidth(), 1)  # type: ignore[arg-type]
    assert "".join(log[9:]) == "yzx"
    assert rounds.bandwidth == [1e6]
    assert rounds.seconds == {name: [3.0 + work.new_tokens] for name in steady}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_names.main(["gpu"]) == 2
    assert "no CUDA device here; nothing was measured" in capsys.readouterr().out


def test_what_is_compiled_is_warmed_up_by_the_whole_work(pair: BenchPair, clock: list[float]) -> None:
    steady = {"it": Steady(clock, 0.5, [], "it")}
    plan = prepare(steady, TASKS["T1"].work(pair), limit=100, whole=True)
    assert plan.first_seconds == {"it": 3 + 0.5 * 128}


@pytest.mark.parametrize("name", benchmark_names.BENCHMARKS)
def test_help_is_shown_and_nothing_is_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        benchmark_names.main([name, "--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_every_benchmark_has_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_names.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"    {name} " in printed for name in benchmark_names.BENCHMARKS)
    assert benchmark_names.main(["speed"]) == 2
    assert (
        "there is no benchmark 'speed'; expected one of against, cluster, compare" in capsys.readouterr().err
    )


# Reporting ----------------------------------------------------------------------------------------------------------


def a_record(pair: BenchPair, task: str = "T1") -> dict[str, Any]:
    work = work_on(pair, task)
    rounds = Rounds(bandwidth=[1e9, 2e9, 4e9])
    for i, name in enumerate(DEFAULTS):
        rounds.seconds[name] = [1.0 + i, 2.0 + i, 4.0 + i]
        rounds.results[name] = [[1] * work.new_tokens] * work.rows
    return results.record(pair, TASKS[task], work, rounds, {OURS: {"peak": 3_000_000, "needed": 2_000_000}})


def test_a_record_says_what_the_rounds_say(pair: BenchPair) -> None:
    found = a_record(pair)
    work = work_on(pair, "T1")
    ours = found["contenders"][OURS]
    assert ours["tokens_per_s"]["median"] == work.tokens / 2
    needed = bytes_to_read(pair, work, 2)
    shares = [needed / 1e9 / 1, needed / 2e9 / 2, needed / 4e9 / 4]
    assert ours["roofline"]["median"] == pytest.approx(statistics.median(shares))
    assert found["speedup"]["processor"] == {"median": 2.0, "min": 6 / 4, "max": 3.0}
    assert found["cost_over_floor"]["median"] == 2 / 5
    assert found["agreement"] == {"authors": 1.0, "processor": 1.0}
    assert json.loads(json.dumps(found)) == found


def test_agreement_counts_tokens_before_the_first_difference(pair: BenchPair) -> None:
    work = work_on(pair, "T2", temperature=0.0, prompts=pair.prompts(2), new_tokens=4)
    ours: Sequence[Sequence[int]] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert results.agreement(work, ours, [[1, 2, 0, 4], [5, 6, 7, 8]]) == 6 / 8
    scoring = work_on(pair, "T4")
    assert results.agreement(scoring, [[-1.0, -2.0]], [[-1.5, -2.25]]) == 0.5


def test_the_command_writes_json_tables_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.SIZES, "10M", SHAPE)
    monkeypatch.setattr("benchmarks.measure.BUFFER_BYTES", {"cpu": 1 << 22})
    out, drawn = tmp_path / "figures.json", tmp_path / "picture.svg"
    arguments = ["--quick", "--sizes", "10M", "--dtypes", "float32,bf16", "--tasks", "T1,T4"]
    arguments += ["--threads", str(torch.get_num_threads()), "--device", "cpu", "--pair", "lora"]
    assert command.main([*arguments, "--out", str(out), "--picture", str(drawn)]) == 0
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert [(r["task"], r["dtype"]) for r in saved["results"]] == [
        (task, dtype) for dtype in ("float32", "bf16") for task in ("T1", "T4")
    ]
    first = saved["results"][0]
    assert set(first["contenders"]) == set(DEFAULTS)
    assert all(len(c["seconds"]) == 2 for c in first["contenders"].values())
    assert first["agreement"] == {"authors": 1.0, "processor": 1.0}
    assert saved["machine"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "(b) logits processor" in printed
    assert "10M bf16, lora pair" in printed
    before = drawn.read_bytes()
    assert b"<svg" in before
    assert command.main(["--from", str(out), "--picture", str(drawn)]) == 0
    assert drawn.read_bytes() == before  # a picture is a function of its figures


def test_rounds_are_added_to_what_a_file_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.SIZES, "10M", SHAPE)
    monkeypatch.setattr("benchmarks.measure.BUFFER_BYTES", {"cpu": 1 << 22})
    out = tmp_path / "figures.json"
    threads = ["--threads", str(torch.get_num_threads()), "--device", "cpu"]
    arguments = [
        "--quick",
        "--sizes",
        "10M",
        "--dtypes",
        "float32",
        "--alternatives",
        "eddecode,floor",
        *threads,
    ]
    arguments += ["--out", str(out), "--resume", "--budget", "0", "--rounds", "2", "--tasks", "T1,T2"]

    def rounds() -> dict[str, int]:
        return {r["task"]: len(r["bandwidths"]) for r in json.loads(out.read_text())["results"]}

    seen = []
    for code in (3, 3, 3, 0, 0):  # no time at all: a round each call, and nothing once all are there
        assert command.main(arguments) == code
        seen.append(rounds())
    assert seen == [{"T1": 1}, {"T1": 2}, {"T1": 2, "T2": 1}, {"T1": 2, "T2": 2}, {"T1": 2, "T2": 2}]
    record = json.loads(out.read_text())["results"][0]
    assert all(len(c["seconds"]) == 2 for c in record["contenders"].values())
    ours, floor = (record["contenders"][name]["seconds"] for name in ("eddecode", "floor"))
    assert record["cost_over_floor"]["median"] == pytest.approx(
        statistics.median(a / b for a, b in zip(ours, floor, strict=True))
    )
    assert "left for the next time: T1 10M float32, full pair" in " ".join(capsys.readouterr().out.split())
    assert command.main([*arguments, "--threads", "7"]) == 2
    assert "was measured with" in " ".join(capsys.readouterr().err.split())


def test_several_files_are_shown_as_one(
    pair: BenchPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name for name in ("one.json", "two.json")]
    first, second = a_record(pair, "T1"), a_record(pair, "T2")
    newer = {**first, "title": "measured again"}
    machine = results.machine("cpu", 1)
    results.write(paths[0], {"machine": machine, "results": [first]})
    results.write(paths[1], {"machine": machine, "results": [second, newer]})
    assert results.read(paths)["results"] == [newer, second]
    assert command.main(["--from", *map(str, paths), "--picture", str(tmp_path / "both.svg")]) == 0
    assert {"T1", "T2"} <= set(capsys.readouterr().out.split())
    (tmp_path / "no.json").write_text("[]", encoding="utf-8")
    assert command.main(["--from", str(tmp_path / "no.json")]) == 2
    assert "does not hold figures that --out has written" in " ".join(capsys.readouterr().err.split())


def test_unknown_names_are_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--tasks", "T1,T9"])
    assert "T9; expected some of T1, T2, T3, T4" in capsys.readouterr().err


def test_a_picture_draws_one_group_per_task_with_figures(pair: BenchPair, tmp_path: Path) -> None:
    records = [a_record(pair, "T1"), a_record(pair, "T2")]
    plot.draw_ratios(records, tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert all(word in text for word in ("T1", "T2", "(c) base model alone", f"{pair.variant} pair"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured on Linux")
def test_peak_memory_counts_what_was_freed_again() -> None:
    before = memory.start_counting("cpu")
    block = torch.ones(50_000_000, dtype=torch.uint8)
    del block
    assert 45e6 < memory.peak_bytes("cpu") - before < 80e6
    again = memory.start_counting("cpu")
    assert memory.peak_bytes("cpu") - again < 20e6  # the peak was forgotten


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured on Linux")
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_probe_counts_the_models_that_the_alternative_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(command.SIZES, "10M", SHAPE)
    threads = torch.get_num_threads()
    found = memory.run(memory.Probe(name, "T2", "10M", "float32", "full", "cpu", threads, quick=True))
    base = build(SHAPE, "float32", base_only=True).base
    weights = sum(p.nbytes for p in base.parameters()) * ALTERNATIVES[name].models
    assert found["weights"] == weights < found["needed"]
    assert found["peak"] == weights + found["extra"] >= weights


def test_a_probe_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho 'Traceback' >&2\necho 'MemoryError: too big' >&2\nexit 1\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(memory.sys, "executable", str(interpreter))
    probe = memory.Probe(OURS, "T1", "10M", "float32", "full", "cpu", 1)
    assert memory.measure(probe) == {"error": "MemoryError: too big"}
