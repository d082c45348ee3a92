"""Workers of Ray decode the same run, also when one is killed."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit import AuditConfig, audit
from eddecode.audit.decode import LoadedSamplers, Progress
from eddecode.errors import ConfigError, ContextError, EngineError, PairError
from eddecode.integrations.ray_workers import (
    RaySampler,
    Workers,
    _Failure,
    _rebuilt,
    _Worker,
    threads_per_worker,
)
from eddecode.testbed.bundled import bundled_pair
from eddecode.utils.threads import VARIABLES
from helpers.stub_runs import exported


@pytest.mark.parametrize("text", ["", "local", "local:0", "2", "ray://head:10001", "local:2,3"])
def test_other_spellings_of_workers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected local:COUNT"):
        Workers.parse(text)


def test_addresses_of_clusters() -> None:
    assert Workers.parse("ray://head:10001,8") == Workers("ray://head:10001", 8)
    assert Workers.parse("auto,2") == Workers("auto", 2)


@pytest.mark.parametrize(
    "error",
    [
        PairError("no such checkpoint"),
        EngineError("no memory", model="base", prompt_index=3, sample=1, position=7),
        ContextError("too long", prompt_index=3),
    ],
)
def test_an_error_travels_with_its_fields(error: Any) -> None:
    rebuilt = _rebuilt(_Failure.of(error), 0)
    assert type(rebuilt) is type(error)
    assert str(rebuilt) == str(error)
    moved = _rebuilt(_Failure.of(error), 10)
    assert getattr(moved, "prompt_index", None) == (13 if hasattr(error, "prompt_index") else None)


def test_threads_are_the_users_or_an_equal_share(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert [threads_per_worker(16, count) for count in (1, 4, 5, 32)] == [16, 4, 3, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_per_worker(16, 4) == 2
    monkeypatch.setenv("EDDECODE_THREADS", "3")
    assert threads_per_worker(16, 4) == 3


@pytest.fixture
def ray_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Ray on this machine, whose workers import this checkout, without programs of Ray's that no worker needs (2 s)."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'eddecode[ray]'")
    for name in ("start_log_monitor", "start_monitor", "start_api_server"):
        monkeypatch.setattr(f"ray._private.node.Node.{name}", lambda *_, **__: None, raising=False)
    yield ray
    ray.shutdown()


def configured(out: Path, **changes: Any) -> AuditConfig:
    pair = bundled_pair()
    options: dict[str, Any] = {
        **{"base": str(pair.base), "aligned": str(pair.aligned), "base_template": str(pair.base_template)},
        **{"prompts": [f"hello, where is my kettle number {n}?" for n in range(12)], "judges": ["lexicon"]},
        **{"alphas": "0.3,0.6", "samples": 2, "temperature": 0.7, "max_new_tokens": 24, "dtype": "float32"},
    }
    return AuditConfig(out=str(out), **{**options, **changes})


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_doubles_nothing(
    tmp_path: Path, ray_at_home: Any, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed once the first part is back: either worker has at least one more then, of four."""
    monkeypatch.setattr("eddecode.audit.decode._COMMIT_ROWS", 8)
    processes: list[int] = []
    killed = threading.Event()

    def load(config: AuditConfig, model: str) -> RaySampler:
        sampler = RaySampler(config, model, Workers("local", 2))
        processes.extend(sampler.processes())  # now, since a worker that decodes answers when it is done
        return sampler

    def kill_one(progress: Progress) -> None:
        if progress.stage == "decode" and progress.done >= 8 and not killed.is_set():
            killed.set()
            os.kill(processes[0], signal.SIGKILL)

    audit(configured(tmp_path / "workers"), sampler=LoadedSamplers(load), on_progress=kill_one)
    assert killed.is_set()
    audit(configured(tmp_path / "alone"))
    several, alone = exported(tmp_path / "workers"), exported(tmp_path / "alone")
    assert len(several) == 12 * 2 * 4
    assert [(row["name"], row["prompt_index"], row["sample"], row["token_ids"]) for row in several] == [
        (row["name"], row["prompt_index"], row["sample"], row["token_ids"]) for row in alone
    ]


def test_a_worker_says_why_it_cannot_load_its_models(tmp_path: Path) -> None:
    failure = _Worker(configured(tmp_path, base=str(tmp_path / "nowhere")), "", None).failure()
    with pytest.raises(PairError, match="nowhere"):
        raise _rebuilt(pickle.loads(pickle.dumps(failure)), 0)
