"""The header of a safetensors file: names, dtypes, shapes and offsets of its tensors, read without loading them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from eddecode.errors import PairError

# Bits per element by dtype; those below a byte are packed.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_MAX_HEADER = 100_000_000  # bytes, as the format says


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """(the tensors of a safetensors file by name, the offset of their bytes); PairError for a damaged file.

    Layout: 8 bytes with the length n of the header, n bytes of JSON, then the tensors' bytes without gaps
    (huggingface.co/docs/safetensors). Every entry has a known dtype, and bytes for exactly its shape.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if prefix.startswith(b"version "):
            raise PairError(
                f"{path} is a git-lfs pointer and not the weights themselves; run `git lfs pull` in its folder"
            )
        if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER):
            raise damaged(path, f"its header should have {length} bytes and the whole file has {size}")
        raw = file.read(length)
    header = _parsed(path, raw)
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end:
            raise damaged(path, f"the bytes of {name} begin at {start} and those before it end at {end}")
        end = stop
    if 8 + length + end != size:
        raise damaged(path, f"it should have {8 + length + end} bytes by its header, and it has {size}")
    return header, 8 + length


def _parsed(path: Path, raw: bytes) -> dict[str, Any]:
    """The entries of a header, each checked by itself."""
    try:
        header = json.loads(raw, object_pairs_hook=_without_duplicates)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
                raise damaged(path, f"{name} has the shape {shape} and the offsets {start} to {stop}")
            if dtype not in BITS:
                raise damaged(path, f"{name} has the dtype {dtype!r}; expected one of {', '.join(BITS)}")
            bits = math.prod(shape) * BITS[dtype]
            if bits != 8 * (stop - start):
                raise damaged(
                    path, f"{name} of {dtype} {shape} needs {bits / 8:g} bytes and has {stop - start}"
                )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise damaged(path, f"its header is no table of tensors ({type(error).__name__})") from error
    return dict(header)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def damaged(path: Path, what: str) -> PairError:
    """The error for a weight file that cannot be read."""
    return PairError(f"{path} is corrupt or truncated: {what}. Fetch the file again")
