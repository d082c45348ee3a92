"""The direction along which an aligned model represents that it will refuse (Arditi et al., arXiv 2406.11717).

Candidates are differences of means: the residual stream after each layer, at each of the last tokens that all prompts
have in common, averaged over prompts that the model refuses minus those that it answers. One half of the prompts makes
the means; the other half chooses. As in the code of the paper (andyrdt/refusal_direction, `select_direction`), the
direction is the one whose removal leaves least refusal, among those with KL ≤ 0.1 on harmless prompts and of the first
80% of the layers; its third condition, that adding the direction makes the model refuse harmless prompts, is left out.
The paper tells a refusal by a list of first tokens for each model. Here no list is needed: a first token counts by how
much more likely it is after a refused prompt than after an answered one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eddecode.audit.attack_models.first_tokens import (
    Texts,
    first_token_logprobs,
    halves,
    mean_divergence,
)
from eddecode.audit.attack_models.states import candidate_layers, mean_states
from eddecode.errors import ConfigError
from eddecode.models.residual_writers import ablated, layers_of

KL_LIMIT = 0.1  # nats
MOST_POSITIONS = 5
LEAST_DIFFERENCE = 0.01  # of the score, for the model to begin the two kinds of prompt differently


@dataclass(frozen=True)
class Candidate:
    """A direction and what its removal does on the held-out half.

    Attributes:
        layer: index of the layer after which it was taken; position: of the token, from the end, −1 the last.
        score: how much the first tokens after refused prompts are still those of a refusal.
        kl: KL(aligned ‖ without the direction) on the harmless prompts, nats.
    """

    layer: int
    position: int
    score: float
    kl: float


@dataclass(frozen=True)
class RefusalDirection:
    """The chosen direction.

    Attributes:
        vector: (d,) float32, unit length.
        chosen: its candidate. candidates: all.
        remaining: the share of the difference between first tokens after refused and after answered prompts that is
            left, 1 before; None where the model does not begin the two kinds of prompt differently.
    """

    vector: Tensor
    chosen: Candidate
    remaining: float | None
    candidates: tuple[Candidate, ...]


def refusal_direction(
    model: Any, harmful: Texts, harmless: Texts, vocabulary: Tensor, layer: int | None = None
) -> RefusalDirection:
    """Find the direction.

    Args:
        model: the aligned one.
        harmful, harmless: token ids of prompts that it refuses, and of prompts that it answers; at least two of each.
        vocabulary: (V,) bool, ids that may be sampled.
        layer: take this one; None chooses.

    Raises:
        ConfigError: the model has no such layer, or its states are equal for both kinds of prompt.
        PairError: its layers or what writes into its residual stream cannot be told.
    """
    depth = len(layers_of(model))
    if layer is not None and not 0 <= layer < depth:
        raise ConfigError(f"attack ablate:{layer}: the model has layers 0 to {depth - 1}")
    (fit, held), (fit_harmless, held_harmless) = halves(harmful), halves(harmless)
    positions = _common_end([*harmful, *harmless])
    vectors = mean_states(model, fit, positions) - mean_states(model, fit_harmless, positions)
    # d: how much more likely each token is after a refused prompt.
    openings = _mean_opening(model, fit, vocabulary) - _mean_opening(model, fit_harmless, vocabulary)
    before = first_token_logprobs(model, held_harmless, vocabulary)
    found: dict[tuple[int, int], Candidate] = {}
    for at in candidate_layers(depth, layer):
        for place in range(positions):
            if not float(vectors[at, place].norm()):
                continue
            with ablated(model, vectors[at, place]):
                refused = first_token_logprobs(model, held, vocabulary)
                answered = first_token_logprobs(model, held_harmless, vocabulary)
            score = float((refused.exp() @ openings).mean())
            found[at, place] = Candidate(at, place - positions, score, mean_divergence(before, answered))
    if not found:
        raise ConfigError("the model's states are equal for both files of prompts; give prompts that differ")
    chosen = _chosen(list(found.values()))
    start = float((first_token_logprobs(model, held, vocabulary).exp() @ openings).mean())
    end = float((before.exp() @ openings).mean())
    vector = vectors[chosen.layer, chosen.position + positions]
    remaining = (chosen.score - end) / (start - end) if start - end > LEAST_DIFFERENCE else None
    return RefusalDirection(vector / vector.norm(), chosen, remaining, tuple(found.values()))


def _chosen(candidates: Sequence[Candidate]) -> Candidate:
    """The least refusal among those that keep the limit on KL; without any, the least KL."""
    kept = [each for each in candidates if each.kl <= KL_LIMIT]
    return min(kept, key=lambda each: each.score) if kept else min(candidates, key=lambda each: each.kl)


def _common_end(texts: Texts) -> int:
    """How many last tokens all texts have in common (those of the template behind a prompt), 1 to `MOST_POSITIONS`."""
    count = 0
    while count < min(MOST_POSITIONS, *map(len, texts)) and len({text[-1 - count] for text in texts}) == 1:
        count += 1
    return max(1, count)


def _mean_opening(model: Any, texts: Texts, vocabulary: Tensor) -> Tensor:
    """(V,) mean probability of each first token."""
    return first_token_logprobs(model, texts, vocabulary).exp().mean(dim=0)
