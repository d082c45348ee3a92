"""What a session works on is on record, and a run that went on elsewhere says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eddecode.audit import AuditConfig, environment
from eddecode.audit.analysis.environment_mismatch import environment_mismatch
from eddecode.audit.run import rejudge
from eddecode.audit.store.store import Store
from helpers.stub_runs import Interrupted, config, run
from helpers.stub_sampler import StubSampler


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def stopped(settings: AuditConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(settings, sampler=Interrupted(100))


def test_sessions_say_what_they_ran_on(tmp_path: Path) -> None:
    summary = run(config(tmp_path / "run"))
    with Store.read(tmp_path / "run") as store:
        (session,) = store.sessions()
        assert session["config"] == summary.digest
        assert session["checkpoints"] == {"base": "org/base", "aligned": "org/aligned"}
        assert {"torch", "transformers", "eddecode", "processor", "cores", "device"} <= set(session)


def test_a_run_that_went_on_elsewhere_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path / "run")
    monkeypatch.setattr(environment, "_processor", lambda: "one")
    stopped(settings)
    monkeypatch.setattr(environment, "_processor", lambda: "another")
    summary = run(settings)
    (note,) = summary.notes
    assert note.startswith(
        "sessions 1, 2 decoded this run and differ in processor (one; another): the last digits"
    )
    assert note in (tmp_path / "run" / "summary.json").read_text()


def test_sessions_that_decoded_nothing_change_no_digit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path / "run")
    stopped(settings)
    assert run(settings).notes == ()  # on the same machine
    monkeypatch.setattr(environment, "_processor", lambda: "another")
    assert run(settings).notes == ()  # finished before
    assert rejudge(tmp_path / "run", ["refusal"]).notes == ()


@pytest.mark.usefixtures("cpu")
def test_another_choice_of_product_is_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured on a machine, and not the machine, decides: the same processor may choose otherwise."""
    settings = config(tmp_path / "run", dtype="float32")

    def loaded(compiled: bool, sampler: Any) -> Any:
        monkeypatch.setattr("eddecode_kernels.speed_check.is_faster_than_torch", lambda dtype: compiled)
        monkeypatch.setattr("eddecode_kernels.jit.instruction_set", lambda: "AVX2")
        monkeypatch.setattr("eddecode.audit.decode.load_sampler", lambda *_: sampler)
        return run(settings, sampler=None)

    with pytest.raises(KeyboardInterrupt):
        loaded(True, Interrupted(100))
    (note,) = loaded(False, StubSampler()).notes
    assert (
        "differ in products of weights (float32 compiled for AVX2; float32 library): the last digits" in note
    )
    with Store.read(tmp_path / "run") as store:
        assert [session["products"] for session in store.decoded_in()] == [
            {"float32": "compiled for AVX2"},
            {"float32": "library"},
        ]


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(
    ("dtype", "kinds"),
    [("auto", {"float32", "bfloat16", "float16"}), ("bf16", {"bfloat16"}), ("float16", {"float16"})],
)
def test_products_are_recorded_for_the_dtypes_that_have_a_choice(
    dtype: str, kinds: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "eddecode_kernels.speed_check.is_faster_than_torch", lambda kind: kind == torch.bfloat16
    )
    monkeypatch.setattr("eddecode_kernels.jit.instruction_set", lambda: "AVX2")
    found = environment.collect_environment({}, config(Path(), dtype=dtype), loads=True)["products"]
    assert found == {kind: "compiled for AVX2" if kind == "bfloat16" else "library" for kind in kinds}
    assert "products" not in environment.collect_environment({}, config(Path(), dtype=dtype))


def test_threads_are_a_difference_unless_all_products_are_compiled() -> None:
    def note(kind: str) -> str | None:
        shared = {"products": {"float32": kind}}
        return environment_mismatch([{"id": 1, "threads": 1, **shared}, {"id": 2, "threads": 2, **shared}])

    assert "differ in threads (1; 2)" in str(note("library"))
    assert note("compiled") is None
