"""Which runner decodes a pair: the fastest that agrees with plain forward passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.execution.cuda_graph_capture import GraphCapture
from eddecode.execution.model_runner_factory import warn_without_graphs
from eddecode.execution.pair_runner import PairRunner

if TYPE_CHECKING:
    from eddecode.models.ensemble import ModelGroup
from eddecode.execution.lora_runner import BASE, LoraPairRunner


def runner_for(pair: ModelGroup, capture: GraphCapture | None = None) -> PairRunner:
    """The fastest runner of a pair that agrees with plain forward passes; `capture` as in `PairRunner`."""
    factors = getattr(pair, "factors", None)
    if factors and capture is not None:
        captured = LoraPairRunner(pair, factors, capture=capture)  # type: ignore[arg-type]
        objection = captured.self_check()
        if objection is None:
            return captured
        warn_without_graphs("base and aligned", pair.models[BASE], objection)
    if factors:
        for own_attention in (False, True):
            shared = LoraPairRunner(pair, factors, own_attention=own_attention)  # type: ignore[arg-type]
            if shared.self_check() is None:
                return shared
    return PairRunner(pair, capture)
