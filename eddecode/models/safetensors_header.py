"""The header of a safetensors file: names, dtypes, shapes and offsets of its tensors, read without loading them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eddecode.errors import PairError


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """(the tensors of a safetensors file by name, the offset of their bytes); PairError for a damaged file.

    Layout: 8 bytes with the length n of the header, n bytes of JSON, then the tensors' bytes without gaps
    (huggingface.co/docs/safetensors).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if prefix.startswith(b"version "):
            raise PairError(
                f"{path} is a git-lfs pointer and not the weights themselves; run `git lfs pull` in its folder"
            )
        if len(prefix) < 8 or length > size - 8:
            raise damaged(path, f"its header should have {length} bytes and the whole file has {size}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise damaged(path, f"its header is no table of tensors ({type(error).__name__})") from error
    if 8 + length + end != size:
        raise damaged(path, f"it should have {8 + length + end} bytes by its header, and it has {size}")
    return header, 8 + length


def damaged(path: Path, what: str) -> PairError:
    """The error for a weight file that cannot be read."""
    return PairError(f"{path} is corrupt or truncated: {what}. Fetch the file again")
