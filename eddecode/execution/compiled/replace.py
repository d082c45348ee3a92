"""The layers of a model, exchanged for compiled ones while the engine runs it.

A decode step on a CPU lasts as long as it takes to read the weights, and the library's matrix product reads them at
half of what the memory gives (docs/performance.md). The weights themselves are not touched, moved or copied, and
outside of the engine's own passes the model is as it was loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn

from eddecode.execution.compiled.decoder_layer import CompiledDecoderLayer, block_forward
from eddecode.execution.compiled.decoder_stack import CompiledDecoderStack, stack_forward
from eddecode.execution.compiled.lora import LoraDelta
from eddecode.execution.compiled.rms_norm import norm_forward
from eddecode.execution.patching import patched_forward
from eddecode_kernels.linear import linear_for, pays
from eddecode_kernels.silu import silu_for


class CompiledLayers:
    """The layers of one model that are exchanged while the engine runs it.

    Compiled ones, where there are any and where they pay: none on a GPU. And layers with a low-rank change, which some
    rows of a batch take and others do not.
    """

    def __init__(
        self, model: Any, changes: Mapping[str, LoraDelta] | None = None, *, blocks: bool = True
    ) -> None:
        """blocks: exchange whole blocks where that is possible, and not only their layers.

        Attributes:
            blocks: how many are exchanged.
            stack: the whole body as one call, or None.
        """
        head = model.get_output_embeddings()
        self._forwards: dict[Any, Callable[..., Any]] = {}
        within: tuple[str, ...] = ()  # names of what is inside exchanged blocks
        found: dict[Any, CompiledDecoderLayer] = {}
        for name, module in model.named_modules():
            if name.startswith(within):
                continue
            if blocks and (block := _block_for(module, name, model, changes)) is not None:
                self._forwards[module] = block
                found[module] = block
                within = (*within, f"{name}.")
                continue
            if module is head or hasattr(module, "_hf_hook"):
                continue  # the head gives float32 (see `Float32LMHead`); hooked layers may not have their weights here
            small = norm_forward(module) or _activation_for(module, model)
            if small is not None:
                self._forwards[module] = small
            if type(module).forward is not nn.Linear.forward:
                continue
            forward = linear_for(module.weight, module.bias, module.weight.dtype)
            if forward is not None and not pays(module.weight.dtype):
                forward = None
            if changes is not None and name in changes:
                forward = changes[name].on(forward or partial(nn.Linear.forward, module))
            if forward is not None:
                self._forwards[module] = forward
        self.blocks = len(found)
        self.stack: CompiledDecoderStack | None = None
        body = model.base_model
        if found and (stack := stack_forward(body, found)) is not None:
            self._forwards[body] = stack
            self.stack = stack

    def __len__(self) -> int:
        return len(self._forwards)

    @property
    def attend(self) -> bool:
        """Whether the exchanged ones do all the attention of a pass."""
        return self.stack is not None

    def installed(self) -> AbstractContextManager[None]:
        """Within the block the compiled forward passes stand in for the modules' own."""
        return patched_forward(self._forwards)


def _block_for(
    module: Any, name: str, model: Any, changes: Mapping[str, LoraDelta] | None
) -> CompiledDecoderLayer | None:
    """The compiled form of a decoder layer, where the product that it is built on pays."""
    if not hasattr(module, "self_attn") or model.device.type != "cpu" or not pays(model.dtype):
        return None
    return block_forward(module, name, changes)


def _activation_for(module: Any, model: Any) -> Callable[[Tensor], Tensor] | None:
    """The compiled form of an activation, where the library's own makes a row depend on its batch."""
    if type(module).__name__ not in ("SiLU", "SiLUActivation") or model.device.type != "cpu":
        return None
    return silu_for(model.dtype)
