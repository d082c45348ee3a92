"""Stores in which a bit has changed: an error, or the bit lies where nothing is read."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from benchmarks.reliability.figure import Figure, count, noted
from benchmarks.reliability.runs import config, content, run
from eddecode.errors import StoreError


def flipped(whole: bytes, rng: random.Random) -> bytes:
    """The bytes with another value of one bit."""
    changed, at = bytearray(whole), rng.randrange(8 * len(whole))
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def flips(root: Path, rng: random.Random, copies: int) -> list[Figure]:
    """Copies of a run with one flipped bit each."""
    run(config(root / "whole", prompts=60))
    wanted = content(root / "whole")
    whole, found, harmless = (root / "whole" / "run.sqlite").read_bytes(), 0, 0
    copy = root / "flipped"
    for _ in range(copies):
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        (copy / "run.sqlite").write_bytes(flipped(whole, rng))
        try:
            harmless += content(copy) == wanted
        except StoreError:
            found += 1
        except Exception:
            pass  # a trace is wrong too
    return [
        noted(f"{copies} stores with a flipped bit: refused", found),
        noted("… read as they were written (the bit is in unused space)", harmless),
        count("… read as something else, or a trace", copies - found - harmless),
    ]
