"""Log-probabilities of given tokens under two models and any number of their contrasts, from one pass over the logits.

Scoring a text at sixteen α's takes sixteen softmaxes of the same two rows. One by one, each of them goes through memory
several times; block by block, every block of logits is read once and serves all of them while it is in the first-level
cache. On a CPU that is C++; on other devices, and where there is no compiler, the same sums are computed in torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from ctypes import Structure, byref, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from eddecode_kernels.jit import function
from eddecode_kernels.types import UnavailableError

SLICE = (
    1 << 18
)  # logits of one model that the torch version takes at a time on a CPU: temporaries stay in cache
NEVER = float("-inf")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowScores:
    """Scores of P tokens; NaN where the logits of a model were NaN, +inf, or all −inf.

    Attributes:
        own: (2, P) float64, log-probability of the token under each model's own full softmax, nats.
        contrasts: (A, P) float64, under each contrast.
        greedy: (A, P) bool, whether the token is the most likely one under the contrast; of several, the lowest id.
        divergences: (2, P) float64, KL(first ‖ second) and KL(second ‖ first) of the models' distributions over the
            vocabulary, nats; +inf where one gives mass to an id to which the other gives none.
    """

    own: Tensor
    contrasts: Tensor
    greedy: Tensor
    divergences: Tensor


class _ScoreCall(Structure):
    """The struct `EddecodeScore` of csrc/score.cpp, field for field."""

    _fields_ = (
        *((name, c_int64) for name in ("rows", "width", "contrasts", "threads")),
        ("logits", c_void_p * 2),
        ("widths", c_int64 * 2),
        ("strides", c_int64 * 2),
        *(
            (name, c_void_p)
            for name in ("targets", "weights", "vocabulary", "logprobs", "greedy", "divergences")
        ),
    )


def score_rows(
    logits: Sequence[Tensor], targets: Tensor, weights: Tensor, vocabulary: Tensor | None = None
) -> RowScores:
    """Log-probabilities of one token per row under both models and under every contrast, and how far they diverge.

    A contrast is `eddecode.sampling.contrast`: float32, −inf outside the vocabulary and where a term of nonzero weight
    is −inf; a token there has log-probability −inf. Sums are taken in float64. The environment variable
    EDDECODE_KERNELS=reference selects the torch version.

    Args:
        logits: two tensors (P, V_i) float32, V_i ≥ V, the last dimension contiguous.
        targets: (P,) int64, below V.
        weights: (A, 2) float32, of the two terms; A may be 0.
        vocabulary: (V,) bool, true where an id may be sampled; None allows all ids below the smaller V_i.

    Raises:
        ValueError: shapes or dtypes are not as above.
    """
    _check(logits, targets, weights, vocabulary)
    if logits[0].device.type == "cpu" and os.environ.get("EDDECODE_KERNELS") != "reference":
        try:
            return _compiled(logits, targets, weights, vocabulary)
        except UnavailableError as error:
            _warn_once(str(error))
    return reference(logits, targets, weights, vocabulary)


@cache
def _warn_once(reason: str) -> None:
    _log.warning("scoring runs as plain torch, slower at many α's: %s", reason)


def _check(logits: Sequence[Tensor], targets: Tensor, weights: Tensor, vocabulary: Tensor | None) -> None:
    rows = targets.shape[0]
    width = min(z.shape[-1] for z in logits) if vocabulary is None else vocabulary.shape[0]
    fits = (
        len(logits) == 2
        and all(z.dim() == 2 and z.shape[0] == rows and z.shape[1] >= width for z in logits)
        and all(z.dtype == torch.float32 for z in logits)
        and weights.dim() == 2
        and weights.shape[1] == 2
    )
    if not fits:
        raise ValueError(
            f"score_rows cannot take logits {[(tuple(z.shape), z.dtype) for z in logits]} with {rows} targets, weights "
            f"{tuple(weights.shape)} and a vocabulary of {width}; expected two ({rows}, ≥ {width}) torch.float32 and "
            "weights (A, 2)"
        )
    if rows and not 0 <= int(targets.min()) <= int(targets.max()) < width:
        raise ValueError(
            f"targets reach from {int(targets.min())} to {int(targets.max())}; expected ids of the vocabulary, "
            f"0 to {width - 1}"
        )


def _compiled(
    logits: Sequence[Tensor], targets: Tensor, weights: Tensor, vocabulary: Tensor | None
) -> RowScores:
    rows, contrasts = targets.shape[0], weights.shape[0]
    z = [x if x.stride(1) == 1 else x.contiguous() for x in logits]
    targets = targets.to(torch.int64).contiguous()
    weights = weights.to("cpu", torch.float32).contiguous()
    vocabulary = None if vocabulary is None else vocabulary.to("cpu").contiguous()
    logprobs = torch.empty(2 + contrasts, rows, dtype=torch.float64)
    greedy = torch.empty(contrasts, rows, dtype=torch.uint8)
    divergences = torch.empty(2, rows, dtype=torch.float64)
    call = _ScoreCall(
        rows=rows,
        width=min(x.shape[1] for x in z) if vocabulary is None else vocabulary.shape[0],
        contrasts=contrasts,
        threads=torch.get_num_threads(),
        logits=(c_void_p * 2)(*(x.data_ptr() for x in z)),
        widths=(c_int64 * 2)(*(x.shape[1] for x in z)),
        strides=(c_int64 * 2)(*(x.stride(0) for x in z)),
        targets=targets.data_ptr(),
        weights=weights.data_ptr(),
        vocabulary=None if vocabulary is None else vocabulary.data_ptr(),
        logprobs=logprobs.data_ptr(),
        greedy=greedy.data_ptr(),
        divergences=divergences.data_ptr(),
    )
    function("eddecode_score", c_void_p)(byref(call))
    return RowScores(logprobs[:2], logprobs[2:], greedy.bool(), divergences)


@torch.inference_mode()
def reference(
    logits: Sequence[Tensor], targets: Tensor, weights: Tensor, vocabulary: Tensor | None = None
) -> RowScores:
    """The same in torch, on any device; see `score_rows`."""
    rows = targets.shape[0]
    step = rows if logits[0].is_cuda else max(1, SLICE // max(z.shape[1] for z in logits))
    pairs = [(float(v), float(w)) for v, w in weights.tolist()]
    parts = [
        _slice([z[at : at + step] for z in logits], targets[at : at + step], pairs, vocabulary)
        for at in range(0, rows, max(step, 1))
    ]
    if not parts:
        none = torch.empty(2, 0, dtype=torch.float64)
        empty = none.new_empty(len(pairs), 0)
        return RowScores(none, empty, empty.bool(), none)
    return RowScores(*(torch.cat(column, dim=-1) for column in zip(*parts, strict=True)))


def _slice(
    logits: Sequence[Tensor],
    targets: Tensor,
    weights: Sequence[tuple[float, float]],
    vocabulary: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = min(z.shape[1] for z in logits) if vocabulary is None else vocabulary.shape[0]
    at = targets[:, None].to(logits[0].device)
    own = []
    for z in logits:
        total = _normalizer(z)
        total = torch.where(total == NEVER, torch.nan, total)  # a model that gives no id any mass is broken
        own.append(z.gather(-1, at)[:, 0].double() - total)
    base, aligned = (z[:, :width] for z in logits)
    if vocabulary is not None:
        allowed = vocabulary.to(base.device)
        base, aligned = base.masked_fill(~allowed, NEVER), aligned.masked_fill(~allowed, NEVER)
    dead = (base == NEVER) | (aligned == NEVER)
    scratch, contrasts, greedy = torch.empty_like(base), [], []
    before = torch.arange(width, device=base.device) < at
    for v, w in weights:
        if v == 0 or w == 0:
            torch.mul(base if w == 0 else aligned, v if w == 0 else w, out=scratch)
        else:
            torch.mul(base, v, out=scratch).add_(aligned, alpha=w).masked_fill_(dead, NEVER)
        chosen = scratch.gather(-1, at)[:, 0].double()
        total = _normalizer(scratch)
        never = (chosen == NEVER) & ~total.isnan()
        contrasts.append(torch.where(never, NEVER, chosen - total))
        own_logit = scratch.gather(-1, at)
        beaten = ((scratch > own_logit) | ((scratch == own_logit) & before)).any(dim=-1)
        greedy.append(~beaten & ~never)
    divergences = torch.stack([_divergence(base, aligned, dead), _divergence(aligned, base, dead)])
    rows = torch.stack(contrasts) if contrasts else own[0].new_empty(0, len(targets))
    firsts = torch.stack(greedy) if greedy else rows.bool()
    return torch.stack(own), rows, firsts, divergences


def _normalizer(z: Tensor) -> Tensor:
    """(P,) float64 log Σ exp of (P, V); NaN for NaN or +inf, −inf if all are."""
    top = z.amax(dim=-1, keepdim=True)
    floor = torch.where(top == NEVER, 0.0, top)
    total = (z - floor).exp_().sum(dim=-1, dtype=torch.float64)  # +inf − +inf is NaN
    return floor[:, 0].double() + total.log()


def _divergence(p: Tensor, q: Tensor, dead: Tensor) -> Tensor:
    """(P,) float64 KL(p ‖ q) in nats of two rows of logits, −inf where an id does not count; 0 ≤ KL ≤ +inf."""
    top = p.amax(dim=-1, keepdim=True)
    mass = (p - torch.where(top == NEVER, 0.0, top)).exp_()
    moment = (mass * (p - q).masked_fill_(dead, 0.0)).sum(dim=-1, dtype=torch.float64)
    mean = moment / mass.sum(dim=-1, dtype=torch.float64) - _normalizer(p) + _normalizer(q)
    alone = ((p > NEVER) & (q == NEVER)).any(dim=-1)
    return torch.where(alone, torch.inf, mean.clamp(min=0.0))
