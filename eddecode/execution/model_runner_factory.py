"""Which runner executes one model: the fastest that passes its self-check."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.cuda_graph import GraphCapture, GraphModelRunner
from eddecode.execution.runner import CachedModelRunner
from eddecode.execution.self_check import max_relative_error, self_check
from eddecode.execution.uncached_runner import UncachedModelRunner

_log = logging.getLogger(__name__)


def model_runner_for(
    model: Any, name: str, capture: GraphCapture | None = None
) -> CachedModelRunner | UncachedModelRunner:
    """The fastest runner that agrees with a plain forward pass of the model.

    Args:
        model: a causal LM.
        name: how messages call it.
        capture: how decode steps are captured as graphs; None captures nothing.
    """
    if capture is not None:
        graphs = GraphModelRunner(model, capture)
        failure = self_check(model, partial(max_relative_error, graphs, (1, 1, 1)))
        if failure is None:
            return graphs.clone_empty()
        warn_without_graphs(name, model, failure)
    for runner in _fallbacks(model):
        failure = self_check(model, partial(max_relative_error, runner))
        if failure is None:
            _log_uncompiled(name, runner)
            return runner.clone_empty()
    warnings.warn(
        f"{name} ({model.config.model_type}): decoding through a key-value cache {failure}; the whole text is "
        "recomputed for every token instead, which is exact but slow",
        stacklevel=2,
    )
    return UncachedModelRunner(model)


def _fallbacks(model: Any) -> Iterator[CachedModelRunner]:
    """Ways to run a model over a cache, the fastest first; a slower one is made when it is needed."""
    runner = CachedModelRunner(model)
    yield runner
    if runner.layers.num_layers:
        runner = CachedModelRunner(model, layers=CompiledModules(model, whole_layers=False))
        yield runner
    if not runner.dense_mask:
        yield CachedModelRunner(model, dense_mask=True, layers=runner.layers)


def _log_uncompiled(name: str, runner: CachedModelRunner) -> None:
    """Log that a model's decoder layers run by its own forward pass, and why."""
    if runner.layers.num_layers:
        return
    model = runner.model
    why = (
        "are not of a known form"
        if runner.layers.has_backend
        else f"have no compiled form in {model.dtype} on {model.device.type} that is faster than torch"
    )
    _log.info(
        "%s (%s): its decoder layers %s; they run by the model's own forward pass",
        name,
        model.config.model_type,
        why,
    )


def warn_without_graphs(name: str, model: Any, failure: str) -> None:
    """Warn that a model's steps are not captured although that was asked for, and why."""
    warnings.warn(
        f"{name} ({model.config.model_type}): decoding by CUDA graphs {failure}; its steps are launched one by one "
        "instead, which gives the same and is slower",
        stacklevel=3,
    )
