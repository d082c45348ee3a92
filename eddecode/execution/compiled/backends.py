"""Where compiled decoder layers run: one backend per kind of device, behind one protocol.

To add a backend, write a class like `CpuBackend` in a file of its own and list it in BACKENDS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from eddecode.execution.compiled.cpu_backend import CpuBackend
from eddecode.execution.compiled.triton_backend import TritonBackend
from eddecode_kernels.decoder_layer import DecoderLayerShape, DecoderLayerWeights, ForwardContext, KVPointers


class CompiledLayers(Protocol):
    """One decoder layer, or several in a row, compiled.

    Attributes:
        shape: of every layer.
    """

    shape: DecoderLayerShape

    def __len__(self) -> int:
        """How many layers."""
        ...

    def __call__(self, hidden: Tensor, contexts: Sequence[ForwardContext], caches: KVPointers) -> Tensor:
        """Hidden states (B, T, d), contiguous, overwritten with those after the layers, which are returned.

        Args:
            hidden: what comes in.
            contexts: of the pass, one per layer.
            caches: of as many layers, to which the new keys and values are written.
        """
        ...


class CompiledBackend(Protocol):
    """Compiles decoder layers for one kind of device.

    Attributes:
        name: of the backend.
        packs_texts: whether its layers can read several texts in one row (`ForwardContext.tiles`).
    """

    name: str
    packs_texts: bool

    def available_for(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it can be used on this machine for models of this device and dtype."""
        ...

    def is_faster(self, dtype: torch.dtype) -> bool:
        """Whether it is faster than torch on this machine."""
        ...

    def compile_layer(self, weights: DecoderLayerWeights) -> Any | None:
        """The compiled form of one decoder layer, a `CompiledLayers`; None where the backend does not serve it."""
        ...

    def fuse_layers(self, layers: Sequence[Any]) -> Any | None:
        """Several compiled layers as one call, a `CompiledLayers`; None where they are not of one shape."""
        ...


# On a CPU, Triton's comes in for tests in its interpreter only.
BACKENDS: tuple[CompiledBackend, ...] = (TritonBackend(), CpuBackend())


def backend_for(device: torch.device, dtype: torch.dtype) -> CompiledBackend | None:
    """The first backend that serves this device and dtype and is faster than torch; None if there is none."""
    for backend in BACKENDS:
        if backend.available_for(device, dtype) and backend.is_faster(dtype):
            return backend
    return None
