"""Which runner decodes one model: the fastest that passes its trial."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from eddecode.execution.compiled.replace import CompiledLayers
from eddecode.execution.cuda_graph import GraphModelRunner
from eddecode.execution.cuda_graph_capture import GraphCapture
from eddecode.execution.model_runner import CachedModelRunner, UncachedModelRunner

if TYPE_CHECKING:
    pass
from eddecode.execution.self_check import max_relative_error, self_check


def model_runner_for(
    model: Any, name: str, capture: GraphCapture | None = None
) -> CachedModelRunner | UncachedModelRunner:
    """The fastest decoder that agrees with a plain forward pass of the model."""
    if capture is not None:
        graphs = GraphModelRunner(model, capture)
        objection = self_check(model, partial(max_relative_error, graphs, (1, 1, 1)))
        if objection is None:
            return graphs.clone_empty()
        warn_without_graphs(name, model, objection)
    for decoder in _fallbacks(model):
        objection = self_check(model, partial(max_relative_error, decoder))
        if objection is None:
            return decoder.clone_empty()
    warnings.warn(
        f"{name} ({model.config.model_type}): decoding through a key-value cache {objection}; the whole text is "
        "recomputed for every token instead, which is exact but slow",
        stacklevel=2,
    )
    return UncachedModelRunner(model)


def _fallbacks(model: Any) -> Iterator[CachedModelRunner]:
    """Ways to decode a model through a cache, the fastest first; a slower one is made when it is needed."""
    decoder = CachedModelRunner(model)
    yield decoder
    if decoder.layers.blocks:
        decoder = CachedModelRunner(model, layers=CompiledLayers(model, blocks=False))
        yield decoder
    if not decoder.own_attention:
        yield CachedModelRunner(model, own_attention=True, layers=decoder.layers)


def warn_without_graphs(name: str, model: Any, objection: str) -> None:
    """Say that a model's steps are not captured although that was asked for, and why."""
    warnings.warn(
        f"{name} ({model.config.model_type}): decoding by CUDA graphs {objection}; its steps are launched one by one "
        "instead, which gives the same and is slower",
        stacklevel=3,
    )
