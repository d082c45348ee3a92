"""Low-rank changes of linear layers: an adapter's share of a forward pass that serves both models of a pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from eddecode_kernels.layers_cpu import compiled_linear


@dataclass
class LoraRows:
    """Which rows of the batch in progress have the change; None is none. Set before a pass, read by every layer."""

    active: slice | None = None


@dataclass(frozen=True)
class LoraDelta:
    """A low-rank change W + B·A of one linear layer (LoRA, arXiv 2106.09685, §4.1), for some rows of a batch.

    Attributes:
        a: (r, in) and b: (out, r), of the layer's dtype; a scaling factor is part of b.
        rows: which rows have it.
    """

    a: Tensor
    b: Tensor
    rows: LoraRows

    def wrap(
        self, forward: Callable[[Tensor], Tensor], *, compiled: bool = True
    ) -> Callable[[Tensor], Tensor]:
        """A linear layer's forward pass with the change added: x (n, T, in) to (n, T, out)."""
        down, up = (
            (compiled_linear(weight, None, weight.dtype) if compiled else None)
            or partial(nn.functional.linear, weight=weight)
            for weight in (self.a, self.b)
        )

        def with_delta(x: Tensor) -> Tensor:
            y = forward(x)
            active = self.rows.active
            if active is not None:
                y[active] += up(down(x[active]))
            return y

        return with_delta
