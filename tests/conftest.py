"""What every test stands on: no network, quiet libraries, and two tiny checkpoints on disk."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing here may reach out
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest

# Imports of torch and transformers stay inside functions: xdist's own process reads this file and needs neither.

# Where audits draw their pictures.
DRAWING = ("eddecode.audit.run", "eddecode.audit.merging")

MEMORY = Path("/dev/shm")
ROOM = 4 << 30  # bytes; a whole run of the tests needs a tenth


def pytest_configure() -> None:
    """Temporary files are in memory where the system offers that: every commit of a run would wait for the disk.

    A killed process leaves the same behind in either place. Only a loss of power would not, and no test has one.
    """
    if "PYTEST_DEBUG_TEMPROOT" in os.environ or not os.access(MEMORY, os.W_OK):
        return
    about = os.statvfs(MEMORY)
    runs_programs = not about.f_flag & os.ST_NOEXEC  # which some tests compile
    if about.f_bavail * about.f_frsize >= ROOM and runs_programs:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)


@pytest.fixture(scope="session")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Llama pair as two checkpoint folders (base, aligned); read them, do not write to them."""
    from helpers import tiny

    return tiny.save_pair(tmp_path_factory.mktemp("pair"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Importing makes millions of objects and no garbage: nothing is collected meanwhile."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: one that begins last would be waited for by all other workers."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """What was imported stays: garbage collections need not look through all of the libraries each time.

    Nor does one here: of 800,000 objects it would free a twentieth, and no memory.
    """
    gc.freeze()
    gc.set_threshold(5_000)  # seven times the usual, in a process that makes objects all the time
    testing = sys.modules.get("typer.testing")
    if hasattr(testing, "_get_command"):  # a program's commands are built once, not for every call of it
        testing._get_command = cache(testing._get_command)


@pytest.fixture(autouse=True)
def _own_threads() -> Iterator[None]:
    """How many threads a test, or a command in it, asks of torch ends with the test: sums depend on their number."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """Pictures of an audit are drawn after everything is on disk, take longest, and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for module in DRAWING:
            patch.setattr(f"{module}.write_curve", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def pictures() -> Iterator[None]:
    """Audits draw their pictures, as they do for users, where all others of the folder do not."""
    from eddecode.audit.report.curve import write_curve

    with pytest.MonkeyPatch.context() as patch:
        for module in DRAWING:
            patch.setattr(f"{module}.write_curve", write_curve)
        yield


@pytest.fixture
def on_a_tape(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No compiled layers, as on a GPU: a tape records torch operations only. Buckets are small, so that texts grow."""
    from eddecode.execution import cuda_graph as graph
    from eddecode.execution import kv_cache as cache
    from eddecode_kernels import jit as compiler
    from eddecode_kernels.types import UnavailableError
    from helpers.tape import Tape

    monkeypatch.setattr(compiler, "_library", lambda: UnavailableError("switched off"))
    compiler.function.cache_clear()
    monkeypatch.setenv("EDDECODE_KERNELS", "reference")
    monkeypatch.setattr(cache, "LENGTH_STEP", 8)
    monkeypatch.setattr(graph, "MIN_CAPACITY", 8)
    monkeypatch.setattr(graph, "MIN_BUFFER_POSITIONS", 16)
    Tape.recorded = Tape.played = 0
    yield
    compiler.function.cache_clear()


@pytest.fixture(scope="module")
def cheap_collection() -> Iterator[None]:
    """Benchmarks collect garbage before each run: do not look through all of the libraries each time."""
    gc.freeze()
    yield
    gc.unfreeze()
