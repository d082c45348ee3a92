"""Which runner executes a pair: the fastest that agrees with plain forward passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.execution.capture import GraphCapture
from eddecode.execution.lora_runner import BASE, LoraPairRunner
from eddecode.execution.model_runner_factory import model_runner_for, warn_without_graphs
from eddecode.execution.runner import PairRunner

if TYPE_CHECKING:
    from eddecode.models.ensemble import ModelGroup


def runner_for(pair: ModelGroup, capture: GraphCapture | None = None) -> PairRunner:
    """The fastest runner of a pair that agrees with plain forward passes.

    Args:
        pair: the models.
        capture: how decode steps are captured as graphs (`eddecode.execution.cuda_graph`); None captures nothing.
    """
    factors, reasons = getattr(pair, "factors", None), [""] * len(pair.names)
    if factors and capture is not None:
        captured = LoraPairRunner(pair, factors, capture=capture)  # type: ignore[arg-type]
        failure = captured.self_check()
        if failure is None:
            return captured
        reasons = [warn_without_graphs("base and aligned", pair.models[BASE], failure)] * len(pair.names)
    if factors:
        for dense_mask in (False, True):
            shared = LoraPairRunner(pair, factors, dense_mask=dense_mask)  # type: ignore[arg-type]
            if shared.self_check() is None:
                shared.reasons = reasons
                return shared
    return separate_pair_runner(pair, capture)


def separate_pair_runner(pair: ModelGroup, capture: GraphCapture | None = None) -> PairRunner:
    """A runner that executes each model by itself.

    Each model is checked once on short texts: where decoding through the cache does not agree with a plain forward
    pass, that model is recomputed from scratch for every token, and a warning tells so.
    """
    reasons: list[str] = []
    runners = []
    for model, name in zip(pair.models, pair.names, strict=True):
        found: list[str] = []
        runners.append(model_runner_for(model, name, capture, found))
        reasons.append("; ".join(found))
    return PairRunner(pair, runners, reasons)
