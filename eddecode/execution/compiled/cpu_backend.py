"""Compiled decoder layers on the CPU, in C++ that is built on first use (`eddecode_kernels.decoder_cpu`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eddecode_kernels.decoder_cpu import CpuDecoderLayers, compile_decoder_layer, fuse_layers
from eddecode_kernels.decoder_layer import DecoderLayerWeights
from eddecode_kernels.layers_cpu import attention_available
from eddecode_kernels.speed_check import is_faster_than_torch


class CpuBackend:
    """See `eddecode.execution.compiled.backends.CompiledBackend`."""

    name = "cpu"
    packs_texts = False

    def available_for(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Float32 and bfloat16 on a CPU, where there is a C++ compiler."""
        return attention_available(dtype, device)

    def is_faster(self, dtype: torch.dtype) -> bool:
        """Whether its matrix products are faster than torch's, which depends on the processor's vector units."""
        return is_faster_than_torch(dtype)

    def compile_layer(self, weights: DecoderLayerWeights) -> CpuDecoderLayers | None:
        """See `CompiledBackend.compile_layer`."""
        return compile_decoder_layer(weights)

    def fuse_layers(self, layers: Sequence[CpuDecoderLayers]) -> CpuDecoderLayers | None:
        """See `CompiledBackend.fuse_layers`."""
        return fuse_layers(layers)
