"""The models of an attack are built beside the base alone: no third copy of the weights is in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.attack_memory import probe, save
from benchmarks.pairs import Shape


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is measured on Linux")
@pytest.mark.parametrize("attack", ["weights@-0.3"])
def test_a_merged_model_takes_the_place_of_the_aligned_one(attack: str, tmp_path: Path) -> None:
    """The pair has 80 MB; three copies were 1.9 times the pair. Freed memory that the C library keeps is some MB."""
    save(tmp_path, Shape(hidden=768, feed_forward=3072, layers=2, heads=12, vocabulary=2000), "bf16")
    found = probe(tmp_path, attack)
    assert found["peak"] < 1.35 * found["pair"]
