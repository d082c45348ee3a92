"""Compiled decoder layers on a GPU, in Triton (`eddecode_kernels.decoder_triton`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eddecode_kernels import layers_triton, triton_trial
from eddecode_kernels.decoder_layer import DecoderLayerWeights
from eddecode_kernels.decoder_triton import TritonDecoderLayers, compile_decoder_layer, fuse_layers


class TritonBackend:
    """See `eddecode.execution.compiled.backends.CompiledBackend`."""

    name = "triton"
    packs_texts = True

    def available_for(self, device: torch.device, dtype: torch.dtype) -> bool:
        """bfloat16, float16 and float32 on CUDA devices, where triton is installed and passes a trial."""
        return layers_triton.available(device, dtype) and triton_trial.failure(device, dtype) is None

    def is_faster(self, dtype: torch.dtype) -> bool:
        """Measured on an H200: docs/performance.md. And the only one whose rows do not depend on their batch."""
        return True

    def compile_layer(self, weights: DecoderLayerWeights) -> TritonDecoderLayers | None:
        """See `CompiledBackend.compile_layer`; where attention with these heads, and experts, pass a trial, too."""
        output = weights.linears["output"].weight
        heads = weights.num_heads, weights.num_kv_heads, weights.head_dim
        attention = *heads, weights.attention_softcap
        if triton_trial.attention_failure(output.device, output.dtype, *attention) is not None:
            return None
        if weights.experts is not None:
            router = weights.linears["router"].weight
            if triton_trial.experts_failure(router.device, router.dtype) is not None:
                return None
        return compile_decoder_layer(weights)

    def fuse_layers(self, layers: Sequence[TritonDecoderLayers]) -> TritonDecoderLayers | None:
        """See `CompiledBackend.fuse_layers`."""
        return fuse_layers(layers)
