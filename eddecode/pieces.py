"""A body of compiled blocks in two pieces, each of them one call: the layers of a trunk, and those that follow.

As `eddecode.stack` runs a whole body without what the library does around its layers; what it has found out about the
body, that it is embeddings, blocks, a last norm and rotary angles and nothing else, holds for its pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from eddecode.layers import Layers
from eddecode.stack import Piece, StackForward


class Pieces:
    """The two pieces of a model's body: `trunk`, of the first layers, and `tail`."""

    def __init__(self, body: Any, stack: StackForward, depth: int) -> None:
        self._body, self._stack = body, stack
        self.trunk = Piece(body, stack.blocks[:depth], stack.angles)
        self.tail = Piece(body, stack.blocks[depth:], stack.angles)

    def begin(self, inputs: Any) -> Tensor:
        """What the trunk makes of the ids in the inputs of a pass, (B, T, d)."""
        return self.trunk(
            nn.functional.embedding(inputs["input_ids"], self._body.embed_tokens.weight), inputs
        )

    def end(self, hidden: Tensor, inputs: Any) -> Any:
        """What the body returns where the trunk has made these hidden states, which are left as they are."""
        hidden = self.tail(hidden.clone(memory_format=torch.contiguous_format), inputs)
        return BaseModelOutputWithPast(
            last_hidden_state=self._stack.normed(hidden), past_key_values=inputs["past_key_values"]
        )


def pieces_of(model: Any, layers: Layers, depth: int) -> Pieces | None:
    """The pieces of a model's body, or None where its layers are not exchanged for one stack of blocks."""
    return None if layers.stack is None else Pieces(model.base_model, layers.stack, depth)
