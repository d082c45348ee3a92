"""The C++ library is built once and kept; without a compiler the reference runs."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eddecode.errors import EngineError
from eddecode.sampling import dispatch
from eddecode.sampling.dispatch import contrast_and_sample
from eddecode_kernels import jit as compiler
from eddecode_kernels import sample_cpu as cpu
from eddecode_kernels.types import SamplingRows, UnavailableError


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    """What the module found out about this machine is asked anew, before and after."""
    remembered = (compiler.library_path, compiler._library, compiler.function, dispatch._warn_once)
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


def draw(backend: str = "auto") -> int:
    rows = SamplingRows(
        torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.ones(1), torch.zeros(1), torch.zeros(1)
    )
    u = torch.zeros(1, dtype=torch.float64)
    out = contrast_and_sample([torch.tensor([[0.0, 2.0, 1.0]])], torch.ones(1, 1), rows, u, backend=backend)  # type: ignore[arg-type]
    return int(out.tokens)


def logging_compiler(folder: Path, refuse: str) -> Path:
    """A compiler that notes its command lines in `calls` and fails when `refuse` is among the arguments."""
    script = folder / "cxx"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/calls\n'
        f'case "$*" in *{refuse}*) echo "unknown option {refuse}" >&2; exit 1;; esac\nexec c++ "$@" -O0 -g0\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def test_the_library_is_built_once_with_the_options_that_the_compiler_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", f"{logging_compiler(tmp_path, '-fopenmp')} -DTWICE=2")
    first = compiler.load()
    calls = (tmp_path / "calls").read_text().splitlines()
    compiler.library_path.cache_clear()
    again = compiler.load()
    assert (tmp_path / "calls").read_text().splitlines() == calls  # the second load found it in the cache
    assert first._name == again._name
    assert "-fopenmp" in calls[0]
    assert "-fopenmp" not in calls[-1]
    assert all("-DTWICE=2" in call for call in calls)
    assert [path.suffix for path in (tmp_path / "eddecode" / "kernels").iterdir()] == [".so"]
    monkeypatch.setattr(compiler, "library", lambda: first)
    assert draw("cpu") == 1


def test_the_file_name_depends_on_the_compiler(tmp_path: Path) -> None:
    script = logging_compiler(tmp_path, "-x")
    plain = compiler.fingerprint([str(script)])
    assert plain != compiler.fingerprint([str(script), "-O1"])
    script.write_text(script.read_text() + "# changed\n")
    assert plain != compiler.fingerprint([str(script)])


def test_the_error_quotes_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(logging_compiler(tmp_path, "-fPIC")))
    with pytest.raises(UnavailableError, match=r"compiler fails on the kernel(.|\n)*unknown option -fPIC"):
        compiler.load()
    assert list((tmp_path / "eddecode" / "kernels").iterdir()) == []


def test_without_a_compiler_the_reference_runs_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("EDDECODE_KERNELS", raising=False)
    with caplog.at_level(logging.WARNING):
        assert [draw(), draw()] == [1, 1]
    notes = [r.getMessage() for r in caplog.records if r.name.startswith("eddecode")]
    assert len(notes) == 1
    assert "plain torch" in notes[0]
    assert "no C++ compiler on the path" in notes[0]
    with pytest.raises(EngineError, match="'cpu' is not available: no C\\+\\+ compiler"):
        draw("cpu")


def test_the_environment_variable_selects_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise AssertionError("the compiled kernel was called")

    monkeypatch.setattr(cpu, "contrast_and_sample", stop)
    monkeypatch.setenv("EDDECODE_KERNELS", "reference")
    assert draw() == 1
    monkeypatch.setenv("EDDECODE_KERNELS", "cpu")
    with pytest.raises(AssertionError, match="was called"):
        draw()
    monkeypatch.setenv("EDDECODE_KERNELS", "fpga")
    with pytest.raises(EngineError, match="'fpga' is unknown; expected one of auto, reference, cpu, triton"):
        draw()


def test_a_cache_that_cannot_be_written_is_replaced_by_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(compiler.tempfile, "tempdir", str(tmp_path))
    folder = compiler.cache_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0


def test_a_remembered_failure_holds_no_frames_of_its_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = UnavailableError("no C++ compiler")
    monkeypatch.setattr(compiler, "_library", lambda: failure)
    for _ in range(2):
        with pytest.raises(UnavailableError, match=r"no C\+\+ compiler"):
            compiler.library()
    assert failure.__traceback__ is None
