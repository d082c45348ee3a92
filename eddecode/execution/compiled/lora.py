"""Low-rank changes of linear layers: an adapter's share of a forward pass that serves both models of a pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from eddecode_kernels.linear import linear_for


@dataclass
class LoraRows:
    """Which rows of the batch in progress take the change; None is none. Set before a pass, read by every layer."""

    changed: slice | None = None


@dataclass(frozen=True)
class LoraDelta:
    """A low-rank change W + B·A of one linear layer (LoRA, arXiv 2106.09685, §4.1), for some rows of a batch.

    Attributes:
        a: (r, in) and b: (out, r), of the layer's dtype; a scaling factor is part of b.
        rows: which rows take it.
    """

    a: Tensor
    b: Tensor
    rows: LoraRows

    def on(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The layer with the change: x (n, T, in) to (n, T, out)."""
        down = linear_for(self.a, None, self.a.dtype) or partial(nn.functional.linear, weight=self.a)
        up = linear_for(self.b, None, self.b.dtype) or partial(nn.functional.linear, weight=self.b)

        def changed(x: Tensor) -> Tensor:
            y = forward(x)
            if self.rows.changed is not None:
                y[self.rows.changed] += up(down(x[self.rows.changed]))
            return y

        return changed
