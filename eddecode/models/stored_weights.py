"""The tensors of a loaded model as its files have them, read again from there some rows at a time.

Two things speak for the files where weights are merged. A model that is loaded in a smaller dtype has lost digits that
the difference of two models is made of. And on a CPU the files are mapped: reading a whole model in memory makes all of
its pages resident, a copy of the model beside the merged one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eddecode.models.checkpoint import Checkpoint
from eddecode.models.loaded_weights import EXACT_ELEMENTS, RUN_ELEMENTS
from eddecode.models.stored_elements import TensorReader, at_positions, sample_positions
from eddecode.models.tensor_bytes import byte_view

_FLOATS = ("F64", "F32", "F16", "BF16")


class Rows:
    """A tensor of a model, of which some rows are read at a time: from a file, or in memory.

    Args:
        held: the tensor in memory, which is kept only where it is read there.
        reader: of the file that has it; None: it is read in memory.
        name: in the file.

    Attributes:
        shape, dtype, device: of the tensor in memory.
        is_stored: whether it is read from a file.
        is_rounded: whether the file has it in another dtype.
    """

    def __init__(self, held: Tensor, reader: TensorReader | None = None, name: str = "") -> None:
        self.shape, self.dtype, self.device = held.shape, held.dtype, held.device
        self._held = held if reader is None else None
        self._reader, self._name = reader, name
        self.is_stored = reader is not None
        self.is_rounded = reader is not None and reader.dtype(name) != held.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        """Rows of the first dimension, in the dtype of the file, on the device of the tensor in memory."""
        if self._held is not None:
            return self._held[rows]
        assert self._reader is not None
        width = math.prod(self.shape[1:])
        found = self._reader.read(self._name, [(rows.start * width, rows.stop * width)])
        return found.reshape(-1, *self.shape[1:]).to(self.device)

    def whole(self) -> Tensor:
        """The whole tensor."""
        if self._held is not None:
            return self._held
        assert self._reader is not None
        return self._reader.whole(self._name).to(self.device)


class StoredWeights:
    """Finds the tensors of a model in the files that it was loaded from.

    Args:
        checkpoint: whose files the model was loaded from; None, or an adapter: all tensors are read in memory.
    """

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        files = () if checkpoint is None or checkpoint.is_adapter else checkpoint.files
        self._readers = [TensorReader(path) for path in files]

    def rows(self, name: str, held: Tensor) -> Rows:
        """Where a tensor is read: in the files, if one has a tensor of its name, shape and numbers there.

        What is stored in another form (experts joined in memory, float8 with scales, another name) is read in memory.
        """
        for reader in self._readers:
            entry = reader.entry(name)
            if entry is None or entry["dtype"] not in _FLOATS or entry["shape"] != list(held.shape):
                continue
            runs = sample_positions(held.numel(), EXACT_ELEMENTS, RUN_ELEMENTS)
            stored, found = reader.read(name, runs).to(held.dtype), at_positions(held, runs)
            if torch.equal(byte_view(stored), byte_view(found)):
                return Rows(held, reader, name)
        return Rows(held)
