"""Ways to change one file of a checkpoint: JSON content, a safetensors header, raw bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path, random.Random], None]


def edit(file: str, change: Callable[[dict[str, Any], random.Random], None]) -> Change:
    def changed(path: Path, rng: random.Random) -> None:
        content = json.loads((path / file).read_text())
        change(content, rng)
        (path / file).write_text(json.dumps(content))

    return changed


def write_bytes(file: str, content: bytes) -> Change:
    def changed(path: Path, _: random.Random) -> None:
        (path / file).write_bytes(content)

    return changed


WEIGHTS = "model.safetensors"


def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(change: Callable[[dict[str, Any], str, random.Random], None], file: str = WEIGHTS) -> Change:
    def changed(path: Path, rng: random.Random) -> None:
        header, data = _parts(path / file)
        change(header, rng.choice(sorted(name for name in header if name != "__metadata__")), rng)
        text = json.dumps(header).encode()
        (path / file).write_bytes(len(text).to_bytes(8, "little") + text + data)

    return changed


def with_bytes(change: Callable[[bytes, random.Random], bytes], file: str = WEIGHTS) -> Change:
    def changed(path: Path, rng: random.Random) -> None:
        (path / file).write_bytes(change((path / file).read_bytes(), rng))

    return changed
