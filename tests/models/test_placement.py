"""Which GPU each model goes to, on a machine whose GPUs are only said to be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eddecode.errors import PairError
from eddecode.models import load_group, placement
from eddecode.models.load_config import LoadConfig
from eddecode.models.load_group import CheckpointRef, MemoryRequirement
from helpers import tiny


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the GPUs, which a test changes; the second one is current."""
    names = ["H100", "H100", "T400"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(names))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])
    return names


def devices(adapter_bases: list[int | None], **options: Any) -> list[str] | None:
    configs = LoadConfig.create(**options).per_model([f"model {i}" for i in range(len(adapter_bases))])
    placed = placement.on_own_gpus(configs, adapter_bases)
    return None if placed is None else [str(config.device) for config in placed]


@pytest.mark.usefixtures("gpus")
def test_every_model_gets_a_gpu_of_the_current_kind() -> None:
    assert devices([None, None]) == ["cuda:1", "cuda:0"]
    assert devices([None, None, None]) == ["cuda:1", "cuda:0", "cuda:1"]
    assert devices([None, None, 1]) == ["cuda:1", "cuda:0", "cuda:0"]  # an adapter stays with its base
    assert devices([None, 0]) is None


def test_nothing_is_spread_that_was_placed_or_has_one_gpu(
    gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert devices([None, None], device="cuda:0") is None
    assert devices([None, None], device="cpu") is None
    monkeypatch.setattr("eddecode.models.load_config.has_package", lambda name: True)
    assert devices([None, None], device_map="auto") is None
    gpus[0] = "A100"
    assert devices([None, None]) is None
    gpus.clear()
    assert devices([None, None]) is None


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("free", "check", "expected"),
    [
        ({0: 1 << 40, 1: 1 << 40}, True, ["cuda:1", "cuda:0"]),
        ({0: 1, 1: 1 << 40}, True, ["cuda", "cuda"]),  # others use the second one
        ({0: 1, 1: 1}, True, "would need"),
        ({0: 1, 1: 1}, False, ["cuda:1", "cuda:0"]),
    ],
)
def test_a_gpu_without_room_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: dict[int, int], check: bool, expected: Any
) -> None:
    loaded: list[str] = []

    def load(checkpoint: Any, config: LoadConfig) -> Any:
        loaded.append(str(config.device))
        return tiny.tiny_model(), []

    monkeypatch.setattr(
        "eddecode.models.memory_estimate.free_bytes", lambda d: free.get(1 if d.index is None else d.index, 0)
    )
    monkeypatch.setattr(load_group, "load_model", load)
    refs = [
        CheckpointRef(path, side)
        for path, side in zip(tiny.save_pair(tmp_path), ("base", "aligned"), strict=True)
    ]

    def run() -> None:
        load_group.load_group(refs, LoadConfig.create(), MemoryRequirement(check=check))

    if isinstance(expected, str):
        with pytest.raises(PairError, match=expected):
            run()
    else:
        run()
        assert loaded == expected
