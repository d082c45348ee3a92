"""Which runner executes one model: the fastest that passes its self-check."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

from eddecode.execution.capture import GraphCapture
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.cuda_graph import GraphModelRunner
from eddecode.execution.rowwise_runner import RowwiseModelRunner
from eddecode.execution.runner import CachedModelRunner
from eddecode.execution.self_check import Expectation, Probe, check_runner, check_structure, logits_of
from eddecode.execution.uncached_runner import UncachedModelRunner
from eddecode_kernels.launching import compile_ahead

_log = logging.getLogger(__name__)


def model_runner_for(
    model: Any, name: str, capture: GraphCapture | None = None, reasons: list[str] | None = None
) -> CachedModelRunner | UncachedModelRunner:
    """The fastest runner that agrees with a plain forward pass of the model.

    Args:
        model: a causal LM.
        name: how messages call it.
        capture: how decode steps are captured as graphs; None captures nothing.
        reasons: to which is added why a faster way was tried and is not used.
    """
    reasons = [] if reasons is None else reasons
    if capture is not None:
        captured = _captured_runner(model, name, capture, reasons)
        if captured is not None:
            return captured
    expectation = Expectation.of(model)
    together = failure = None
    for kind in (CachedModelRunner, RowwiseModelRunner):
        together = together or failure
        failure = check_structure(model, kind, expectation)
        for runner in _fallbacks(model, kind) if failure is None else ():
            failure = check_runner(runner, expectation)
            if failure is None:
                _tell(name, runner, together)
                return runner.clone_empty()
    message = (
        f"{name} ({model.config.model_type}): decoding through a key-value cache {failure}; the whole text is "
        "recomputed for every token instead, which is exact but slow"
    )
    reasons.append(message)
    warnings.warn(message, stacklevel=2)
    return UncachedModelRunner(model)


def _captured_runner(
    model: Any, name: str, capture: GraphCapture, reasons: list[str]
) -> GraphModelRunner | None:
    """The model with captured steps: with compiled layers where these agree, else by its own forward pass."""
    expectation = Expectation.of(model, Probe.of(model, (1, 1, 1)))
    runner = GraphModelRunner(model, capture)
    if runner.layers.num_layers:  # by a runner that captures nothing: a graph would be without these launches
        uncaptured = CachedModelRunner(model, layers=runner.layers)
        compile_ahead(runner.device, lambda: logits_of(uncaptured, expectation.probe))
    failure = check_runner(runner, expectation)
    if failure is not None and runner.layers.num_layers:
        reasons.append(
            f"{name} ({model.config.model_type}): captured with compiled layers, decoding {failure}"
        )
        _log.warning("%s; its own forward pass is captured instead", reasons[-1])
        own = CompiledModules(model, whole_layers=False)
        runner = GraphModelRunner(model, capture, layers=own)
        failure = check_runner(runner, expectation)
    if failure is None:
        return runner.clone_empty()
    reasons.append(warn_without_graphs(name, model, failure))
    return None


def _fallbacks(model: Any, kind: type[CachedModelRunner]) -> Iterator[CachedModelRunner]:
    """Ways to run a model over a cache, the fastest first; a slower one is made when it is needed."""
    runner = kind(model)
    yield runner
    if runner.layers.num_layers:
        runner = kind(model, layers=CompiledModules(model, whole_layers=False))
        yield runner
    if not runner.dense_mask:
        yield kind(model, dense_mask=True, layers=runner.layers)


def _tell(name: str, runner: CachedModelRunner, together: str | None) -> None:
    """Warn that rows run one by one, and log that decoder layers run by the model's own forward pass, and why.

    together: why rows of different lengths do not run in one pass.
    """
    if not runner.serves_ragged_passes:
        warnings.warn(
            f"{name} ({runner.model.config.model_type}): decoding texts of different lengths in one pass {together}; "
            "they are decoded one after the other instead, which is exact but slower",
            stacklevel=3,
        )
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


def warn_without_graphs(name: str, model: Any, failure: str) -> str:
    """Warn that a model's steps are not captured although that was asked for, and why; returns the message."""
    message = (
        f"{name} ({model.config.model_type}): decoding by CUDA graphs {failure}; its steps are launched one by one "
        "instead, which gives the same and is slower"
    )
    warnings.warn(message, stacklevel=4)
    return message
