"""Refusal directions: means against plain forward passes, and a model that refuses by a planted direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eddecode.audit.attack_models.first_tokens import (
    first_token_logits,
    first_token_logprobs,
    halves,
    mean_divergence,
)
from eddecode.audit.attack_models.refusal import KL_LIMIT, refusal_direction
from eddecode.errors import ConfigError
from eddecode.models.residual_writers import remove_direction
from helpers import tiny
from helpers.decoding import ids
from helpers.reference import log_softmax, next_logits

END = (7, 8)  # what the template puts behind every prompt
KNOWN = torch.arange(tiny.VOCAB) != 5
BAD, REFUSAL = 40, 50  # the token that a refused prompt holds, and the one that begins a refusal


def _texts(seed: int, count: int, first: int | None = None) -> list[tuple[int, ...]]:
    """Random prompts of several lengths, with a first token or without it."""
    found = []
    for i in range(count):
        inner = tuple(60 + t % 200 for t in ids(100 * seed + i, 4 + i % 3))
        found.append((*([] if first is None else [first]), *inner, *END))
    return found


def _refusing(arch: str = "llama") -> tuple[Any, torch.Tensor]:
    """A model that writes a direction where it has read BAD, and REFUSAL where that direction is."""
    model = tiny.tiny_model(arch, tie_word_embeddings=False, initializer_range=0.02)
    unit = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(9)), dim=0)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    embedding.data = embedding - torch.outer(embedding @ unit, unit)
    head.data = head - torch.outer(head @ unit, unit)
    head.data[REFUSAL] = 2.0 * unit
    attention = model.model.layers[0].self_attn
    embedding.data[BAD] = 0.2 * unit
    # The value of BAD reaches every later position and is written as the direction.
    attention.v_proj.weight.data[:] = 0
    attention.v_proj.weight.data[0] = 40 * unit
    attention.o_proj.weight.data[:] = 0
    attention.o_proj.weight.data[:, 0] = unit
    return model, unit


def test_a_planted_refusal_is_found_and_removed() -> None:
    model, unit = _refusing()
    harmful, harmless = _texts(1, 12, BAD), _texts(2, 12)
    start = first_token_logprobs(model, harmful, KNOWN)[:, REFUSAL].exp().mean()
    assert start > 0.5
    assert first_token_logprobs(model, harmless, KNOWN)[:, REFUSAL].exp().mean() < 0.05
    found = refusal_direction(model, harmful, harmless, KNOWN)
    assert abs(float(found.vector @ unit)) > 0.95
    assert found.remaining is not None
    assert found.remaining < 0.1
    assert found.chosen.kl <= KL_LIMIT
    assert {c.layer for c in found.candidates} == {0}  # of two layers, the last 20% give none
    assert {c.position for c in found.candidates} == {-2, -1}
    remove_direction(model, found.vector, harmful)
    assert first_token_logprobs(model, harmful, KNOWN)[:, REFUSAL].exp().mean() < 0.05 * start


def test_candidates_are_scored_by_plain_passes_on_the_held_out_half() -> None:
    model = tiny.tiny_model("llama")
    harmful, harmless = _texts(3, 6, BAD), _texts(4, 8)
    found = refusal_direction(model, harmful, harmless, KNOWN, layer=1)
    fit, held = halves(harmful)
    fit_harmless, held_harmless = halves(harmless)
    assert (len(fit), len(held), len(fit_harmless)) == (3, 3, 4)
    known = KNOWN.numpy()

    def states(text: tuple[int, ...], back: int) -> np.ndarray:
        with torch.inference_mode():
            hidden = model.model(torch.tensor([text]), output_hidden_states=True)
            raw = model.model.layers[1]  # the last hidden state is normalized: take the layer's own output
            seen: list[Any] = []
            handle = raw.register_forward_hook(lambda module, inputs, output: seen.append(output))
            model(torch.tensor([text]))
            handle.remove()
        assert len(hidden.hidden_states) == 3
        return seen[0][0, back].double().numpy()

    def logprobs(chosen: Any, text: tuple[int, ...]) -> np.ndarray:
        return log_softmax(np.where(known, next_logits(chosen, text), -np.inf))

    openings = np.mean([np.exp(logprobs(model, t)) for t in fit], axis=0)
    openings -= np.mean([np.exp(logprobs(model, t)) for t in fit_harmless], axis=0)
    for candidate in found.candidates:
        vector = np.mean([states(t, candidate.position) for t in fit], axis=0)
        vector -= np.mean([states(t, candidate.position) for t in fit_harmless], axis=0)
        changed = tiny.tiny_model("llama")
        remove_direction(changed, torch.from_numpy(vector).float(), harmful)
        score = np.mean([np.exp(logprobs(changed, t)) @ openings for t in held])
        assert candidate.score == pytest.approx(score, abs=1e-4)
        kl = []
        for text in held_harmless:
            p, q = logprobs(model, text), logprobs(changed, text)
            kl.append(np.sum(np.exp(p[known]) * (p[known] - q[known])))
        assert candidate.kl == pytest.approx(np.mean(kl), rel=1e-3, abs=1e-5)


def test_what_has_no_direction() -> None:
    model = tiny.tiny_model("llama")
    same = _texts(5, 6)
    with pytest.raises(ConfigError, match="equal for both files"):
        refusal_direction(model, same, same, KNOWN)
    with pytest.raises(ConfigError, match="layers 0 to 1"):
        refusal_direction(model, same, _texts(6, 6), KNOWN, layer=2)
    flat, _ = _refusing()
    flat.get_output_embeddings().weight.data[REFUSAL] = 0
    found = refusal_direction(flat, _texts(1, 8, BAD), _texts(2, 8), KNOWN)
    assert found.remaining is None  # it begins both kinds of prompt alike


def test_first_tokens_in_batches_are_those_of_single_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eddecode.audit.attack_models.first_tokens.PREFILL_TOKENS", 20)
    model = tiny.tiny_model("llama")
    texts = _texts(7, 9)
    found = first_token_logits(model, texts)
    for text, row in zip(texts, found, strict=True):
        assert np.allclose(row.double().numpy(), next_logits(model, text), atol=1e-4)
    same = first_token_logprobs(model, texts, KNOWN)
    assert mean_divergence(same, same) == 0
    assert torch.isneginf(same[:, 5]).all()
