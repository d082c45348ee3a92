"""Which modules of a model are replaced by compiled ones while the engine runs it.

A decode step on a CPU lasts as long as it takes to read the weights, and on some processors torch's matrix product
reads them at half of what the memory gives (docs/performance.md). The weights are not changed, moved or copied, and
outside of the engine's own passes the model is as it was loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from eddecode.execution.compiled.backends import backend_for
from eddecode.execution.compiled.decoder_layer import CompiledDecoderLayer, compile_decoder_layer
from eddecode.execution.compiled.decoder_stack import CompiledDecoderStack, compile_decoder_stack
from eddecode.execution.compiled.lora import LoraDelta
from eddecode.execution.compiled.rms_norm import compile_rms_norm
from eddecode_kernels.layers_cpu import compiled_linear, compiled_silu
from eddecode_kernels.speed_check import is_faster_than_torch


class CompiledModules:
    """The modules of one model that are replaced while the engine runs it.

    Whole decoder layers where a backend serves them; else, on a CPU, single operations. And linear layers with a
    low-rank change, which some rows of a batch have and others do not.

    Args:
        model: a causal LM.
        deltas: low-rank changes, by the names of linear layers.
        whole_layers: replace whole decoder layers where that is possible, and not only their operations.
        operations: replace single operations; without them and whole layers, only low-rank changes are added.

    Attributes:
        num_layers: how many whole decoder layers are replaced.
        stack: the whole body as one call, or None.
        handles_attention: whether the replaced body does all the attention of a pass.
        all_layers: whether every decoder layer is replaced, so that no mask is needed beyond ranges of keys.
        tile_tokens: where several texts can be packed into one row, the tokens of a tile (`ForwardContext.tiles`); else
            None.
        forwards: the compiled forward passes, by module; see `patched_forward`.
        has_backend: whether there is a backend for whole layers, whether or not it recognized any.
        head_delta: the low-rank change of the model's head, which runs apart (`Float32LMHead`); else None.
        operations: as given.
    """

    def __init__(
        self,
        model: Any,
        deltas: Mapping[str, LoraDelta] | None = None,
        *,
        whole_layers: bool = True,
        operations: bool = True,
    ) -> None:
        self.operations, self.head_delta = operations, _head_delta(model, deltas or {})
        self.forwards: dict[Any, Callable[..., Any]] = {}
        self.stack: CompiledDecoderStack | None = None
        backend = backend_for(model.device, model.dtype) if whole_layers else None
        self.has_backend = backend is not None
        layers: dict[Any, CompiledDecoderLayer] = {}
        attending = 0
        if backend is not None:
            for name, module in model.named_modules():
                if hasattr(module, "self_attn"):
                    attending += 1
                    compiled = compile_decoder_layer(module, name, backend, deltas)
                    if compiled is not None:
                        layers[module] = compiled
        self.forwards.update(layers)
        self.num_layers = len(layers)
        self._replace_operations(model, deltas or {}, inside={m for layer in layers for m in layer.modules()})
        if backend is not None and layers:
            self.stack = compile_decoder_stack(model.base_model, layers, backend)
        if self.stack is not None:
            self.forwards[model.base_model] = self.stack
        self.handles_attention = self.stack is not None
        self.all_layers = 0 < self.num_layers == attending
        self.tile_tokens: int | None = None
        if backend is not None and backend.packs_texts and self.all_layers:
            self.tile_tokens = min(layer.compiled.tile_tokens for layer in layers.values())  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.forwards)

    def _replace_operations(self, model: Any, deltas: Mapping[str, LoraDelta], inside: set[Any]) -> None:
        """Replace norms, activations and linear layers that are not inside of replaced decoder layers."""
        head = model.get_output_embeddings()  # gives float32: see `Float32LMHead`
        for name, module in model.named_modules():
            # A module with accelerate's hook may not have its weights here, one with another forward only a part.
            if module in inside or module is head or hasattr(module, "_hf_hook") or "forward" in vars(module):
                continue
            forward = None
            if self.operations:
                forward = compile_rms_norm(module) or _compile_activation(module, model)
            if type(module).forward is nn.Linear.forward and (self.operations or name in deltas):
                forward = _compile_linear(module, deltas.get(name), self.operations)
            if forward is not None:
                self.forwards[module] = forward


def _head_delta(model: Any, deltas: Mapping[str, LoraDelta]) -> LoraDelta | None:
    """The low-rank change of the model's head, whatever the head's name."""
    head = model.get_output_embeddings()
    return next(
        (deltas[name] for name, module in model.named_modules() if module is head and name in deltas), None
    )


def _compile_linear(
    module: nn.Linear, delta: LoraDelta | None, compiled: bool
) -> Callable[[Tensor], Tensor] | None:
    """The compiled form of a linear layer where it is faster, and with its low-rank change where it has one."""
    forward = None
    if compiled and is_faster_than_torch(module.weight.dtype):
        forward = compiled_linear(module.weight, module.bias, module.weight.dtype)
    if delta is None:
        return forward
    return delta.wrap(forward or partial(nn.Linear.forward, module), compiled=compiled)


def _compile_activation(module: Any, model: Any) -> Callable[[Tensor], Tensor] | None:
    """The compiled form of an activation, where torch's own makes a row depend on its batch."""
    if type(module).__name__ not in ("SiLU", "SiLUActivation") or model.device.type != "cpu":
        return None
    return compiled_silu(model.dtype)
