"""The oracle: what the engine must compute, implemented naively without any code of eddecode.

For every token both models process the whole text, one row at a time, without a cache; logits are converted to float64
at once; filters and sampling are loops over sorted lists in numpy. It is slow, and short enough to verify by reading.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Floats = np.ndarray[Any, np.dtype[np.float64]]


@torch.inference_mode()
def next_logits(model: Any, ids: Sequence[int]) -> Floats:
    """(V,) float64: the logits after a text, by one plain forward pass."""
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double().numpy()


def softmax(z: Floats) -> Floats:
    """Probabilities of (V,) logits; that of −inf is 0."""
    mass = np.exp(z - z.max())
    return mass / mass.sum()


def log_softmax(z: Floats) -> Floats:
    """Log-probabilities of (V,) logits, nats."""
    top = z.max()
    return z - top - np.log(np.exp(z - top).sum())


def contrasted(
    logits: Sequence[Floats],
    weights: Sequence[float],
    allowed: Collection[int] | None = None,
    plausibility: float = 0.0,
) -> Floats:
    """(V,) weighted sum of logits, −inf at ids that must not be sampled."""
    width = min(len(z) for z in logits)
    terms = [(w, z[:width]) for w, z in zip(weights, logits, strict=True) if w != 0]
    sampled = np.full(width, allowed is None)
    if allowed is not None:
        sampled[[i for i in allowed if i < width]] = True
    for _, z in terms:
        sampled &= z > -np.inf
    result = np.full(width, -np.inf)
    result[sampled] = sum(w * z[sampled] for w, z in terms)
    if plausibility > 0:
        alive = result > -np.inf
        p = softmax(np.where(alive, logits[0][:width], -np.inf))
        result[p < plausibility * p.max()] = -np.inf
    return result


def filtered(z: Floats, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Floats:
    """(V,) probabilities after temperature, top-k, top-p on what top-k kept, and min-p; ties at a boundary are kept."""
    p = softmax(z / temperature)
    if 0 < top_k < len(p):
        p = np.where(p >= sorted(p, reverse=True)[top_k - 1], p, 0.0)
        p /= p.sum()
    if top_p < 1:
        mass, smallest = 0.0, 1.0
        for value in sorted(p, reverse=True):
            if mass >= top_p:
                break
            mass, smallest = mass + value, value
        p = np.where(p >= smallest, p, 0.0)
        p /= p.sum()
    p = np.where(p >= min_p * p.max(), p, 0.0)
    return p / p.sum()


def draw(p: Floats, u: float) -> int:
    """The inverse CDF in the order of the ids."""
    total = 0.0
    for i, value in enumerate(p):
        total += value
        if value > 0 and total > u:
            return i
    return int(np.flatnonzero(p)[-1])


@dataclass
class Continuation:
    """The oracle's result: ids, and per token the log-probabilities (base, aligned, contrast)."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[float, float, float]] = field(default_factory=list)
    reason: str = "length"


def generate(
    models: Sequence[Any],
    prompts: Sequence[Sequence[int]],
    alpha: float,
    count: int,
    *,
    eos: Collection[int] = (),
    allowed: Collection[int] | None = None,
    uniforms: Iterable[float] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    plausibility: float = 0.0,
) -> Continuation:
    """Continue two prompts with one sequence of tokens; greedy if no uniforms are given."""
    done = Continuation()
    stream = None if uniforms is None else iter(uniforms)
    for _ in range(count):
        logits = [
            next_logits(model, [*prompt, *done.ids]) for model, prompt in zip(models, prompts, strict=True)
        ]
        z = contrasted(logits, (1 + alpha, -alpha), allowed, plausibility)
        if stream is None:
            token = int(np.argmax(z))
        else:
            token = draw(filtered(z, temperature, top_k, top_p, min_p), next(stream))
        terms = [log_softmax(logits[0])[token], log_softmax(logits[1])[token], log_softmax(z)[token]]
        done.ids.append(token)
        done.logprobs.append((float(terms[0]), float(terms[1]), float(terms[2])))
        if token in eos:
            done.reason = "eos"
            break
    return done


def hf_greedy(model: Any, ids: Sequence[int], count: int, eos: Collection[int] = ()) -> list[int]:
    """The new ids of transformers' own `generate`, with the EOS that ended them."""
    text = torch.tensor([list(ids)])
    found = model.generate(
        input_ids=text,
        attention_mask=torch.ones_like(text),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=sorted(eos) or None,
        pad_token_id=0,
    )
    return [int(i) for i in found[0, len(ids) :]]


def in_float64(model: Any) -> Any:
    """A copy of a model with the same weights in float64."""
    return copy.deepcopy(model).double()


def total_variation(p: Floats, q: Floats) -> float:
    """Half the L1 distance of two distributions."""
    return 0.5 * float(np.abs(p - q).sum())
