"""The number of threads: limits, what the user has set, and the choice of a trial."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eddecode.utils import control_groups, threads


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    threads.thread_choice.cache_clear()
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    threads.thread_choice.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, folder: Path, cores: int, affinity: int, **files: str) -> None:
    """A machine of so many cores; `files` are those of the process's control group, by name."""
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    own = folder / "own"
    own.write_text("0::/parent/child\n" if "max" in files else "4:cpu,cpuacct:/parent\n")
    group = folder / ("parent" if "max" in files else "cpu/parent")
    group.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (group / {"max": "cpu.max"}.get(name, f"cpu.cfs_{name}_us")).write_text(content)
    monkeypatch.setattr(control_groups, "OWN_GROUPS", own)
    monkeypatch.setattr(control_groups, "CONTROL_GROUPS", folder)


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        ({"max": "max 100000"}, 6),
        ({"max": "250000 100000"}, 3),
        ({"max": "10000 100000"}, 1),
        ({"max": "nonsense"}, 6),
        ({"quota": "-1\n", "period": "100000\n"}, 6),
        ({"quota": "200000\n", "period": "100000\n"}, 2),
        ({}, 6),
    ],
)
def test_affinity_and_quotas_limit_the_threads(
    files: dict[str, str], allowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path, cores=8, affinity=6, **files)
    assert threads.allowed_threads() == allowed


def test_what_the_user_has_set_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, tmp_path, cores=8, affinity=8)
    monkeypatch.setattr(threads, "measure", lambda *_: pytest.fail("no trial is needed"))
    torch.set_num_threads(3)  # no default of eight cores
    assert threads.use_chosen_threads().why == "set by the program"
    assert torch.get_num_threads() == 3
    for name, expected in (("OMP_NUM_THREADS", 3), ("EDDECODE_THREADS", 5)):
        monkeypatch.setenv(name, "5")
        threads.thread_choice.cache_clear()
        assert threads.use_chosen_threads().why == f"set by {name}"
        assert torch.get_num_threads() == expected  # torch has read the former when it was loaded


def test_a_quota_of_one_processor_needs_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, tmp_path, cores=2, affinity=2, max="90000 100000")
    torch.set_num_threads(2)
    choice = threads.use_chosen_threads()
    assert (choice.threads, choice.allowed, torch.get_num_threads()) == (1, 1, 1)


def test_the_trial_decides_once_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, tmp_path, cores=2, affinity=2)
    torch.set_num_threads(2)
    times = iter([{1: 0.001, 2: 0.01}, {1: 0.01, 2: 0.001}])
    monkeypatch.setattr(threads, "measure", lambda counts, step: next(times))
    assert threads.thread_choice().threads == 1
    assert torch.get_num_threads() == 2  # only asked
    assert threads.use_chosen_threads() is threads.thread_choice()  # no second trial
    assert torch.get_num_threads() == 1
    assert threads.thread_choice().milliseconds == {1: 1.0, 2: 10.0}


def test_more_threads_must_pay() -> None:
    assert threads.candidates(1) == [1]
    assert threads.candidates(6) == [1, 2, 4, 6]
    assert threads.candidates(8) == [1, 2, 4, 8]
    assert threads.fewest_that_pay({1: 1.0, 2: 0.55, 4: 0.5, 8: 0.5}) == 2
    assert threads.fewest_that_pay({1: 1.0, 2: 0.55, 4: 0.5, 8: 0.3}) == 8
    assert threads.fewest_that_pay({1: 1.0, 2: 0.95, 4: 0.93}) == 1
    assert threads.fewest_that_pay({1: 1.0, 2: 1.2, 4: 0.7}) == 4


def test_a_trial_measures_every_count_and_puts_the_number_back() -> None:
    before, seen = torch.get_num_threads(), []
    times = threads.measure([1, 2], lambda: seen.append(torch.get_num_threads()))
    assert seen == [1, 2] * (threads.ROUNDS + 1)
    assert set(times) == {1, 2}
    assert torch.get_num_threads() == before
