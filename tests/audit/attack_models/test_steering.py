"""Steering vectors and layers against plain forward passes with an edited bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eddecode.audit.attack_models.steering import add_vector, steering
from eddecode.errors import ConfigError, PairError
from helpers import tiny
from helpers.decoding import ids
from helpers.reference import log_softmax, next_logits

KNOWN = torch.arange(tiny.VOCAB) != 5
PROMPTS = [(ids(i, 5 + i % 3), ids(50 + i, 6)) for i in range(6)]


def _state(model: Any, text: tuple[int, ...], layer: int) -> np.ndarray:
    """The residual stream after a layer at the last token; after the last layer it is taken before the norm."""
    seen: list[Any] = []
    handle = model.model.layers[layer].register_forward_hook(lambda *found: seen.append(found[2]))
    with torch.inference_mode():
        model(torch.tensor([text]))
    handle.remove()
    return seen[0][0, -1].double().numpy()


def test_the_vector_is_the_mean_difference_and_the_layer_the_nearest_to_the_base() -> None:
    base, aligned = tiny.tiny_pair_models("llama")
    found = steering(base, aligned, PROMPTS, KNOWN, 0.7)
    assert set(found.distances) == {0}
    for layer in (0, 1):
        own = steering(base, aligned, PROMPTS, KNOWN, 0.7, layer)
        fit = PROMPTS[0::2]
        expected = np.mean([_state(base, b, layer) - _state(aligned, a, layer) for b, a in fit], axis=0)
        assert np.allclose(own.vector.double().numpy(), 0.7 * expected, atol=1e-4)
        # The same sum by a bias: at every position the last matrix of the layer gives the vector too.
        changed = tiny.tiny_pair_models("llama")[1]
        changed.model.layers[layer].mlp.down_proj.bias = torch.nn.Parameter(own.vector)
        undo = add_vector(aligned, layer, own.vector)
        known, kl = KNOWN.numpy(), []
        for base_text, text in PROMPTS[1::2]:
            q, hooked = (
                log_softmax(np.where(known, next_logits(model, text), -np.inf))
                for model in (changed, aligned)
            )
            assert np.allclose(hooked[known], q[known], atol=1e-4)
            p = log_softmax(np.where(known, next_logits(base, base_text), -np.inf))
            kl.append(np.sum(np.exp(p[known]) * (p[known] - q[known])))
        undo()
        assert own.distances[layer] == pytest.approx(np.mean(kl), rel=1e-3)
        assert own.layer == layer


def test_models_of_other_shapes_and_layers_that_are_not_there_are_refused() -> None:
    base, aligned = tiny.tiny_pair_models("llama")
    with pytest.raises(PairError, match="models of one shape"):
        steering(tiny.tiny_model("llama", num_hidden_layers=3), aligned, PROMPTS, KNOWN, 1.0)
    with pytest.raises(ConfigError, match="layers 0 to 1"):
        steering(base, aligned, PROMPTS, KNOWN, 1.0, 2)
