"""Taking a direction out of what a model can write into its residual stream: directional ablation.

Arditi et al. (arXiv 2406.11717) remove a direction r from every contribution to the residual stream, and
show that orthogonalizing the matrices that write to it, W' = W − r·rᵀ·W, gives the same model. The writers are the
embeddings, the output projection of each attention and the last matrix of each feed-forward part, with their biases.
Where a norm stands between such a matrix and the stream (Gemma 2, OLMo 2), what is removed from the matrix is r scaled
by the norm's weights, which takes r out of the normalized sum exactly.

The writers are found by their names. Whether all were found is not trusted: a trial on texts compares the component
along r after every layer with what it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eddecode.errors import PairError
from eddecode.models.common_layers import decoder_layers
from eddecode.models.sizes import input_device
from eddecode.models.tensor_parallel import is_split, split_like, whole

_ATTENTION = ("o_proj", "out_proj", "dense", "c_proj", "wo")
_FEED_FORWARD = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "c_proj", "w2")
_TOLERANCE = 0.05  # component along the direction that may be left after a layer, relative to what it was
_BLOCK = 1 << 24  # elements that are held in float32 at a time


@dataclass(frozen=True)
class ResidualWriter:
    """A module whose output is added to the residual stream.

    Attributes:
        name: in the model.
        module: a linear layer, an embedding, or the experts of a layer together.
        direction: (d,) float32, unit length: what is removed from its output.
    """

    name: str
    module: nn.Module
    direction: Tensor


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder layers of a model, in the order in which they run.

    Raises:
        PairError: they cannot be identified.
    """
    layers = decoder_layers(model)
    if layers is None:
        raise PairError(
            f"the layers of a {type(model).__name__} cannot be told; expected one list of decoder layers in its body"
        )
    return layers


def residual_writers(model: Any, direction: Tensor) -> list[ResidualWriter]:
    """The modules that write into the residual stream, each with what a direction is in its output.

    Args:
        model: a causal LM.
        direction: (d,), of any length but 0.

    Raises:
        PairError: a layer has no writer of a known name, or one of a kind that cannot be changed.
    """
    unit = direction.float() / direction.float().norm()
    width = len(unit)
    found = [
        ResidualWriter(name, module, unit)
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Embedding) and module.embedding_dim == width
    ]
    for number, layer in enumerate(layers_of(model)):
        own = list(_of_layer(layer, unit))
        parts = {_is_attention(name) for name, _, _ in own}
        if parts != {True, False}:
            missing = "attention" if False in parts or not parts else "feed-forward part"
            raise PairError(
                f"layer {number} of the {type(model).__name__} has no output matrix of its {missing} of a known name "
                f"({', '.join(dict.fromkeys((*_ATTENTION, *_FEED_FORWARD)))}); a direction cannot be taken out of this "
                "family"
            )
        found += [ResidualWriter(f"layers.{number}.{name}", module, of) for name, module, of in own]
    return found


def _of_layer(layer: nn.Module, unit: Tensor) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """(name, module, direction in its output) of the writers of a layer."""
    last = getattr(layer, "post_feedforward_layernorm", None)
    norms = (None, None) if last is None else (layer.post_attention_layernorm, last)
    for name, module in layer.named_modules():
        leaf, attention = name.rpartition(".")[2], _is_attention(name)
        if leaf == "experts" and _expert_weights(module) is not None:
            yield name, module, _before(norms[1], unit)
        elif leaf in (_ATTENTION if attention else _FEED_FORWARD) and _width(module) == len(unit):
            yield name, module, _before(norms[0 if attention else 1], unit)


def _is_attention(name: str) -> bool:
    return "attn" in name or "attention" in name


def _width(module: nn.Module) -> int | None:
    """The length of what a plain linear layer gives; None for other modules."""
    weight = getattr(module, "weight", None)
    if isinstance(module, Conv1D) and isinstance(weight, Tensor):
        return int(weight.shape[1])
    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return int(module.weight.shape[0]) if plain and isinstance(module, nn.Linear) else None


def _expert_weights(module: nn.Module) -> Tensor | None:
    """(experts, out, in) or (experts, in, out): the last matrices of experts that are held together."""
    weights = getattr(module, "down_proj", None)
    return weights if isinstance(weights, Tensor) and weights.dim() == 3 else None


def _before(norm: Any, unit: Tensor) -> Tensor:
    """The direction that must be missing before a norm so that `unit` is missing after it."""
    if norm is None:
        return unit
    weight = norm.weight
    ones = torch.ones(1, 1, len(unit), dtype=weight.dtype, device=weight.device)
    scaled: Tensor = unit * norm(ones)[0, 0].float().to(unit.device)
    unit_before: Tensor = scaled / scaled.norm()
    return unit_before


# Changing the model ----------------------------------------------------------------------------------------------


@contextmanager
def ablated(model: Any, direction: Tensor) -> Iterator[None]:
    """Within the block nothing that the model computes writes along a direction; its weights stay as they are."""

    def remove(writer: ResidualWriter) -> Callable[..., Any]:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            values = output[0] if isinstance(output, tuple) else output
            unit = writer.direction.to(values.device)
            kept = values - ((values.float() @ unit)[..., None] * unit).to(values.dtype)
            return (kept, *output[1:]) if isinstance(output, tuple) else kept

        return hook

    with ExitStack() as stack:
        for writer in residual_writers(model, direction):
            handle = writer.module.register_forward_hook(remove(writer))
            stack.callback(handle.remove)
        yield


def remove_direction(model: Any, direction: Tensor, texts: Sequence[Sequence[int]]) -> None:
    """Orthogonalize all matrices that write into the residual stream to a direction, in float32, rounded once.

    New tensors take the place of the old ones, which another model may share. A tied embedding is separated from its
    head, which keeps its weights. A matrix that is split over processes is whole in each of them meanwhile.

    Args:
        model: a causal LM, just loaded.
        direction: (d,).
        texts: token ids on which a trial shows that the direction is gone after every layer.

    Raises:
        PairError: the weights are quantized or offloaded, the family is not known, or the trial fails. The model is
            then of no use.
    """
    if getattr(model, "is_quantized", False):
        raise PairError(
            "the aligned model is quantized, and its weights cannot be changed; load it in bfloat16"
        )
    writers = residual_writers(model, direction)
    for writer in writers:
        if any(tensor.is_meta for tensor in writer.module.parameters()):
            raise PairError(
                f"the weights of {writer.name} are offloaded, and cannot be changed; use a device with more memory"
            )
    before = _components(model, direction, texts)
    for writer in writers:
        for name, tensor in list(writer.module.named_parameters(recurse=False)):
            changed = _orthogonal(whole(tensor.detach()), writer, name)
            if changed is not None:
                changed = split_like(changed, tensor) if is_split(tensor) else changed
                setattr(writer.module, name, nn.Parameter(changed, requires_grad=False))
    after = _components(model, direction, texts)
    worst = int((after - _TOLERANCE * before - _rounding(model)).argmax())
    if float(after[worst]) > _TOLERANCE * float(before[worst]) + _rounding(model):
        raise PairError(
            f"after the direction was taken out of a {type(model).__name__}, layer {worst} still writes along it "
            f"({float(after[worst]):.2g} of the residual stream, {float(before[worst]):.2g} before): this family has "
            "other matrices that write into it; leave the attack out"
        )


def _orthogonal(tensor: Tensor, writer: ResidualWriter, name: str) -> Tensor | None:
    """A tensor of a writer without the direction in what it gives; None for a tensor that gives nothing."""
    module, unit = writer.module, writer.direction.to(tensor.device)
    experts = _expert_weights(module)
    if experts is not None:
        if not name.startswith("down_proj"):
            return None
        if tensor.dim() == 3 and tensor.shape[1] == tensor.shape[2]:
            raise PairError(
                f"the experts {writer.name} have square matrices, and which side is the output cannot be told"
            )
        return _without(tensor, unit, 1 if tensor.dim() == 3 and tensor.shape[1] == len(unit) else -1)
    return _without(tensor, unit, 0 if name == "weight" and isinstance(module, nn.Linear) else -1)


def _without(tensor: Tensor, unit: Tensor, axis: int) -> Tensor:
    """A tensor minus its components along a unit vector on one of its axes, in float32, block by block."""
    moved = tensor.movedim(axis, -1)
    result = torch.empty_like(tensor)
    flat, out = moved.reshape(-1, len(unit)), result.movedim(axis, -1)
    done = torch.empty_like(flat)
    step = max(1, _BLOCK // len(unit))
    for start in range(0, len(flat), step):
        block = flat[start : start + step].to(torch.promote_types(tensor.dtype, torch.float32))
        unit = unit.to(block.dtype)
        done[start : start + step] = (block - (block @ unit)[:, None] * unit).to(tensor.dtype)
    out.copy_(done.reshape(moved.shape))
    return result


def _rounding(model: Any) -> float:
    """The component along a direction that rounding leaves, relative to the residual stream; four times over.

    Errors of the d elements of each of the 2·L sums are independent, of half the dtype's ε each.
    """
    layers, width = len(layers_of(model)), model.get_input_embeddings().weight.shape[1]
    return 4 * float(torch.finfo(model.dtype).eps) * math.sqrt(2 * layers / width)


# Reading the residual stream -------------------------------------------------------------------------------------


@contextmanager
def layer_outputs(model: Any) -> Iterator[list[Tensor]]:
    """Within the block the residual stream after each layer, (B, T, d), is appended to the list that this yields."""
    seen: list[Tensor] = []

    def hook(module: Any, inputs: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).detach())

    with ExitStack() as stack:
        for layer in layers_of(model):
            stack.callback(layer.register_forward_hook(hook).remove)
        yield seen


@torch.inference_mode()
def residuals(model: Any, text: Sequence[int], positions: int) -> Tensor:
    """(layers, positions, d) float32 on the CPU: the residual stream after each layer at the last tokens of a text."""
    with layer_outputs(model) as seen:
        model(input_ids=torch.tensor([list(text)], device=input_device(model)), use_cache=False)
    return torch.stack([states[0, -positions:].float().cpu() for states in seen])


def _components(model: Any, direction: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    """(layers,): root mean square of the component along a direction, relative to that of the residual stream."""
    unit = (direction.float() / direction.float().norm()).cpu()
    along = whole = torch.zeros(len(layers_of(model)))
    for text in texts:
        states = residuals(model, text, len(text))
        along = along + (states @ unit).square().sum(dim=-1)
        whole = whole + states.square().sum(dim=(-2, -1))
    return (along / whole).sqrt()
