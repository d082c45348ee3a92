"""What every test stands on: no network, quiet libraries, and two tiny checkpoints on disk."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing here may reach out
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import tiny
from transformers.utils import logging

logging.disable_progress_bar()


@pytest.fixture(scope="session")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Llama pair as two checkpoint folders (base, aligned); read them, do not write to them."""
    return tiny.save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of an audit are drawn after everything is on disk, take longest, and have tests of their own."""
    monkeypatch.setattr("eddecode.audit.run.write_curve", lambda *_: None)
