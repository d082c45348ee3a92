"""The body of a model whose layers are all compiled blocks, run as one call.

What the library does around the layers of a step (checks, masks, one Python call per layer) takes a millisecond for a
dozen layers, while a small model's weights are read in five. A body is known by its parts, as a block is: embeddings,
layers, a last norm and rotary angles, and nothing else; it must give what the model's own gives on a trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from eddecode.execution.attention_mask import AttentionMaskBuilder, KeyRangeMask
from eddecode.execution.compiled.decoder_layer import TRIAL_TOLERANCE, CompiledDecoderLayer, pass_of
from eddecode.execution.compiled.passthrough import is_changed
from eddecode.execution.compiled.rms_norm import norm_forward
from eddecode.execution.compiled.rotary import RotaryTable
from eddecode.execution.kv_cache import BatchedKVCache
from eddecode_kernels.decoder_layer import in_a_row

_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}


class LayerRange:
    """Some of the blocks of a body, or all of them, in a row.

    Raises:
        ValueError: they are not of one shape.
    """

    def __init__(self, body: Any, blocks: Sequence[CompiledDecoderLayer], angles: RotaryTable) -> None:
        joined = in_a_row([block.block for block in blocks])
        if joined is None:
            raise ValueError("the blocks of the body are not of one shape")
        self._angles, self._row, self._rows = angles, joined, blocks[0].rows
        self._indices = tuple(block.index for block in blocks)
        kinds = getattr(body.config, "layer_types", None)
        self._kinds = tuple(kinds[index] if kinds else None for index in self._indices)

    def __call__(self, hidden: Tensor, inputs: Any) -> Tensor:
        """Hidden states (B, T, d), contiguous, which are overwritten with those after the piece.

        Args:
            hidden: what comes in.
            inputs: of the pass in progress, as `CachedModelRunner.run_patched` hands them to a body.
        """
        cache: BatchedKVCache = inputs["past_key_values"]
        mask = inputs["attention_mask"]
        positions = inputs["position_ids"]
        written = cache.stop if positions is cache.positions else None  # a family may count otherwise
        angles = self._angles(hidden, positions, written)
        passes = {
            kind: pass_of(cache, mask[kind] if isinstance(mask, dict) else mask, angles, self._rows)
            for kind in set(self._kinds)
        }
        heads, size, _ = self._row.shape
        places = cache.places(self._indices, heads, size, hidden)
        return self._row(hidden, [passes[kind] for kind in self._kinds], places)


class CompiledDecoderStack:
    """All blocks in a row in the place of a body's `forward`.

    Attributes:
        blocks: the layers' compiled forms.
        angles: of the body.
    """

    def __init__(self, body: Any, blocks: Sequence[CompiledDecoderLayer]) -> None:
        self.blocks, self.angles = blocks, RotaryTable(body.rotary_emb)
        self._body, self._stack = body, LayerRange(body, blocks, self.angles)
        self._places = [(vars(layer), block) for layer, block in zip(body.layers, blocks, strict=True)]
        self._own = partial(type(body).forward, body)
        self._norm = norm_forward(body.norm) or body.norm

    def __call__(self, **inputs: Any) -> Any:
        """As the body's own, which still serves where the mask and the cache are not the engine's.

        And where something else stands in for one of the layers.
        """
        ids, cache, mask = (inputs.get(name) for name in ("input_ids", "past_key_values", "attention_mask"))
        masks = mask.values() if isinstance(mask, dict) else [mask]
        ours = isinstance(cache, BatchedKVCache) and all(isinstance(each, KeyRangeMask) for each in masks)
        whole = all(attributes.get("forward") is block for attributes, block in self._places)
        if ids is None or inputs.get("inputs_embeds") is not None or not (ours and whole):
            return self._own(**inputs)
        return BaseModelOutputWithPast(last_hidden_state=self.states(inputs), past_key_values=cache)

    def states(self, inputs: Mapping[str, Any]) -> Tensor:
        """The hidden states after the last norm, (B, T, d), of a pass with the engine's own mask and cache."""
        hidden = self._stack(
            nn.functional.embedding(inputs["input_ids"], self._body.embed_tokens.weight), inputs
        )
        return self.normed(hidden)

    def normed(self, hidden: Tensor) -> Tensor:
        """Hidden states after the last norm."""
        norm = self._body.norm
        found: Tensor = (norm if is_changed(norm) else self._norm)(hidden)
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block the layers run their blocks, for a trial."""
        for attributes, block in self._places:
            attributes["forward"] = block
        try:
            yield
        finally:
            for attributes, _ in self._places:
                del attributes["forward"]


def stack_forward(body: Any, blocks: Mapping[Any, CompiledDecoderLayer]) -> CompiledDecoderStack | None:
    """The compiled form of a body's forward, or None if it is not a plain stack of blocks.

    Args:
        body: the model without its head.
        blocks: its layers that are compiled blocks.
    """
    if (
        {name for name, _ in body.named_children()} != _PARTS
        or not all(layer in blocks for layer in body.layers)
        or body.config.num_hidden_layers != len(body.layers)
        or type(body.embed_tokens).forward is not nn.Embedding.forward
        or body.embed_tokens.max_norm is not None
        or any(
            module._forward_hooks or module._forward_pre_hooks for module in (*body.children(), *body.layers)
        )
    ):
        return None
    try:
        stack = CompiledDecoderStack(body, [blocks[layer] for layer in body.layers])
    except ValueError:  # blocks of several shapes
        return None
    return stack if _agrees(body, stack) else None


@torch.inference_mode()
def _agrees(body: Any, stack: CompiledDecoderStack) -> bool:
    """Whether the stack gives what the body gives: two rows of three tokens, from the beginning."""
    tokens = torch.tensor([[1, 2, 3], [3, 1, 0]]) % body.embed_tokens.weight.shape[0]
    cache = BatchedKVCache()
    cache.lengths = [0, 0]
    positions = cache.open(3).positions
    try:
        seen = AttentionMaskBuilder(body.config).seen(positions)
        expected = body(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
        with stack.alone():
            found = stack(
                input_ids=tokens, attention_mask=seen, position_ids=positions, past_key_values=cache
            ).last_hidden_state
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return False
    # Errors of the blocks add up; a scale that is left out, or a norm too many, is of the size of the states.
    limit = 10 * TRIAL_TOLERANCE[found.dtype] * expected.float().abs().max()
    return bool((found - expected).float().abs().max() <= limit)
