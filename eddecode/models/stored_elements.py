"""Some elements of a tensor in a safetensors file, read without mapping the file.

A mapping would count as memory of the process beside the loader's own. Elements are read in short runs, evenly spaced
over the tensor, the first and the last among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eddecode.models.safetensors_header import damaged, read_header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_RUNS = 16


def sample_positions(count: int, limit: int, run: int) -> list[tuple[int, int]]:
    """Runs (start, end) of positions of a flat tensor: one that covers it up to `limit` elements, else 16 of `run`."""
    if count <= limit:
        return [(0, count)]
    starts = [round(i * (count - run) / (_RUNS - 1)) for i in range(_RUNS)]
    return [(start, start + run) for start in starts]


class TensorReader:
    """Reads elements of the tensors of one safetensors file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header, self._start = read_header(path)

    def read(self, name: str, runs: list[tuple[int, int]]) -> Tensor:
        """The elements at runs of positions of the flat tensor, in its dtype in the file.

        Raises:
            PairError: the file has become shorter.
        """
        dtype = self.dtype(name)
        offset = self._start + int(self._header[name]["data_offsets"][0])
        raw = bytearray(sum(end - start for start, end in runs) * dtype.itemsize)
        rest = memoryview(raw)
        with self._path.open("rb") as file:
            for start, end in runs:
                piece, rest = rest[: (end - start) * dtype.itemsize], rest[(end - start) * dtype.itemsize :]
                file.seek(offset + start * dtype.itemsize)
                if file.readinto(piece) != len(piece):
                    raise damaged(self._path, f"{name} ends early")
        return torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor in the file."""
        return DTYPES[self._header[name]["dtype"]]

    def entry(self, name: str) -> Mapping[str, Any] | None:
        """ "dtype" and "shape" of a tensor; None where the file has no tensor of this name."""
        return self._header.get(name)

    def whole(self, name: str) -> Tensor:
        """A whole tensor, in its shape."""
        shape = self._header[name]["shape"]
        return self.read(name, [(0, math.prod(shape))]).reshape(shape)


def at_positions(tensor: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """The elements at runs of positions of a tensor in memory, on the CPU; a large one is not copied."""
    flat = torch.cat([torch.arange(start, end) for start, end in runs])
    if tensor.dim() == 0:
        return tensor.detach().reshape(1).cpu()
    places = torch.unravel_index(flat.to(tensor.device), tensor.shape)
    return tensor.detach()[places].cpu()
