"""What a runner of one model is, what it makes of a text, and how it is described.

`CachedModelRunner` (`runner`) is fast and serves every model whose layers attend over a mask; `UncachedModelRunner`
recomputes whole texts and serves everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from eddecode.execution.row_parts import RowPart


@dataclass
class PrefillResult:
    """A text that a model has been run over: what its rows start from.

    Attributes:
        length: tokens of the text.
        logits: (V,) float32, of the token after it.
        states: per layer (keys, values), each (heads, length, head_dim); empty where they are not kept.
        ids: the text.
    """

    length: int
    logits: Tensor
    states: Sequence[tuple[Tensor, Tensor]]
    ids: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the states."""
        if isinstance(self.states, RowPart):
            return self.states.nbytes
        return sum(keys.nbytes + values.nbytes for keys, values in self.states)


class ModelRunner(Protocol):
    """Executes one model over slots. Occupied slots are 0 … n−1."""

    def prefill(self, texts: Sequence[tuple[int, ...]]) -> list[PrefillResult]:
        """Run texts from their beginning, in one batch; touches no slot."""
        ...

    @property
    def occupied(self) -> int:
        """How many slots are occupied."""
        ...

    def reserve(self, slots: int, positions: int = 0) -> None:
        """Have room for that many rows, which may come to have that many positions."""
        ...

    def add(self, prefix: PrefillResult) -> None:
        """Occupy the next slot with a row that begins with `prefix`."""
        ...

    def remove(self, slot: int) -> None:
        """Vacate a slot; the last occupied one moves into its place."""
        ...

    def forward(self, tokens: Tensor) -> Tensor:
        """Append (n, T) tokens to all n rows and return the logits after each, (n, T, V) float32."""
        ...

    def truncate(self, lengths: Sequence[int]) -> None:
        """Shorten every row to the given length."""
        ...

    def trim(self) -> None:
        """Give back unused memory."""
        ...

    def clone_empty(self) -> ModelRunner:
        """A runner of the same model with no slot occupied."""
        ...


@dataclass(frozen=True)
class ModelExecution:
    """How one model is run.

    Attributes:
        model: its name.
        device: where.
        compiled_layers: decoder layers that run in a compiled form; 0: the model's own forward pass.
        captured: whether its steps are replayed as graphs.
        batch_invariant: whether its logits have the same bits in any batch. A model's own forward pass does not promise
            that: libraries choose other kernels for other numbers of rows.
        reason: why a faster way was tried and is not used; empty where the fastest is.
    """

    model: str
    device: str
    compiled_layers: int
    captured: bool
    batch_invariant: bool
    reason: str = ""
