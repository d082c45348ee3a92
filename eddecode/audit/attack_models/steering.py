"""Steering the aligned model by the pair's mean difference in the residual stream.

The vector is the mean over prompts of the base's residual stream after a layer minus the aligned model's, each at the
last token of the prompt in its own template: from there each begins its completion. Times a strength, it is added to
the aligned model's stream after that layer at every position, as Arditi et al. (arXiv 2406.11717) add a direction.
(Contrastive activation addition, Panickssery et al., arXiv 2312.06681, takes its vectors from pairs of completions, and
adds them after the prompt only.) One half of the prompts makes the vector. The layer is the one with
which, on the other half, the aligned model's first tokens come nearest to the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eddecode.audit.attack_models.first_tokens import (
    first_token_logprobs,
    halves,
    mean_divergence,
)
from eddecode.audit.attack_models.states import candidate_layers, mean_states
from eddecode.errors import ConfigError, PairError
from eddecode.models.residual_writers import layers_of


@dataclass(frozen=True)
class Steering:
    """What is added, and where.

    Attributes:
        layer: index of the layer after which it is added.
        vector: (d,) float32, with the strength in it.
        distances: layer → KL(base ‖ steered) of first tokens on the held-out prompts, nats.
        unsteered: the same without steering.
    """

    layer: int
    vector: Tensor
    distances: dict[int, float]
    unsteered: float


def steering(
    base: Any,
    aligned: Any,
    prompts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    vocabulary: Tensor,
    strength: float,
    layer: int | None = None,
) -> Steering:
    """Find the vector and the layer.

    Args:
        base, aligned: the two models.
        prompts: (the base's token ids, the aligned model's) of each prompt; at least two.
        vocabulary: (V,) bool, ids that may be sampled.
        strength: what the mean difference is multiplied by.
        layer: take this one; None chooses.

    Raises:
        ConfigError: the aligned model has no such layer.
        PairError: the two models differ in their layers or in their width, or the layers cannot be told.
    """
    depths = [len(layers_of(model)) for model in (base, aligned)]
    widths = [model.get_input_embeddings().weight.shape[1] for model in (base, aligned)]
    if len(set(depths)) > 1 or len(set(widths)) > 1:
        raise PairError(
            f"the base has {depths[0]} layers of width {widths[0]}, the aligned model {depths[1]} of {widths[1]}; "
            "steering adds the difference of their states, and needs models of one shape"
        )
    if layer is not None and not 0 <= layer < depths[1]:
        raise ConfigError(
            f"attack steer: layer {layer} is asked for; the model has layers 0 to {depths[1] - 1}"
        )
    fit, held = halves(prompts)
    ours, theirs = mean_states(base, [p[0] for p in fit], 1), mean_states(aligned, [p[1] for p in fit], 1)
    vectors = strength * (ours - theirs)[:, 0]
    reference = first_token_logprobs(base, [p[0] for p in held], vocabulary)
    texts = [p[1] for p in held]
    distances = {}
    for at in candidate_layers(depths[1], layer):
        undo = add_vector(aligned, at, vectors[at])
        distances[at] = mean_divergence(reference, first_token_logprobs(aligned, texts, vocabulary))
        undo()
    unsteered = mean_divergence(reference, first_token_logprobs(aligned, texts, vocabulary))
    best = min(distances, key=lambda at: distances[at])
    return Steering(best, vectors[best], distances, unsteered)


def add_vector(model: Any, layer: int, vector: Tensor) -> Callable[[], None]:
    """Add a vector (d,) to the residual stream after a layer at every position; the function returned undoes it."""

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        added = states + vector.to(states.device, states.dtype)
        return (added, *output[1:]) if isinstance(output, tuple) else added

    handle = layers_of(model)[layer].register_forward_hook(hook)
    return handle.remove
