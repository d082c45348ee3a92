"""What the engine decodes: requests, the rows that they become, and the draws that a batch of rows asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eddecode.sampling.params import SamplingParams
from eddecode.sampling.rng import uniforms
from eddecode.utils.device import to_device
from eddecode_kernels.types import SamplingRows


@dataclass(frozen=True)
class Request:
    """One completion to make.

    Attributes:
        name: how errors call it ("prompt 3, sample 0").
        ids: the prompt as each model sees it.
        params: how it is sampled.
        weights: the weight of each model's logits in the contrast.
        eos: ids that end it.
        key: (2,) uint64, its random stream.
        stops: whether the tokens so far contain a stop string.
        tag: whatever the caller wants to find again.
    """

    name: str
    ids: tuple[tuple[int, ...], ...]
    params: SamplingParams
    weights: tuple[float, ...]
    eos: frozenset[int]
    key: np.ndarray[Any, np.dtype[np.uint64]]
    stops: Callable[[Sequence[int]], bool] | None = None
    tag: Any = None


@dataclass(eq=False)
class Row:
    """A request on its way: what has been sampled so far.

    Attributes:
        tokens: sampled ids.
        logprobs: for each of them, one log-probability per model and then the contrast's, nats.
        finish_reason: "eos", "stop" or "length" once it is done.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    finish_reason: str | None = None
    _uniforms: Any = None

    def texts(self) -> tuple[tuple[int, ...], ...]:
        """What each model has to read before it can go on."""
        return tuple((*ids, *self.tokens) for ids in self.request.ids)

    def uniform(self, position: int) -> float:
        """The uniform of the token at a position of the completion."""
        if self._uniforms is None:
            self._uniforms = uniforms(self.request.key, 0, self.request.params.max_new_tokens)
        return float(self._uniforms[position])

    def weights(self, position: int) -> tuple[float, ...]:
        """The weight of each model's logits at a position: the base's alone once the others no longer answer."""
        access = self.request.params.access
        if access is None or access.tokens is None or position < access.tokens:
            return self.request.weights
        return (1.0, *(0.0 for _ in self.request.weights[1:]))

    def noise_seed(self, position: int, model: int) -> int:
        """The seed of the noise on one model's log-probabilities at a position."""
        low, high = (int(word) for word in self.request.key)
        return (low | high << 32 | position << 64 | model << 96) + 1

    def forbidden(self, position: int) -> tuple[int, ...]:
        """Ids that the token at a position must not be."""
        params = self.request.params
        ids = params.suppress_tokens
        if position < params.min_new_tokens:
            ids = (*ids, *self.request.eos, *params.stop_token_ids)
        elif params.suppress_eos:
            ids = (*ids, *self.request.eos)
        return ids

    def append(self, token: int, logprobs: list[float]) -> None:
        """Take a token, and decide whether it was the last."""
        self.tokens.append(token)
        self.logprobs.append(logprobs)
        request, params = self.request, self.request.params
        if token in request.eos and not params.ignore_eos:
            self.finish_reason = "eos"
        elif token in params.stop_token_ids or (
            request.stops is not None
            and len(self.tokens) >= params.min_new_tokens
            and request.stops(self.tokens)
        ):
            self.finish_reason = "stop"
        elif len(self.tokens) >= params.max_new_tokens:
            self.finish_reason = "length"


@dataclass(frozen=True)
class Draws:
    """Tokens to draw in one call of the kernels: each is one position of one row.

    Attributes:
        places: (row, position in its completion) of each.
        weights: (N, n) float32.
        sampling: the parameters of each.
    """

    places: list[tuple[Row, int]]
    weights: Tensor
    sampling: SamplingRows
    device: torch.device

    @classmethod
    def at(cls, places: list[tuple[Row, int]], device: torch.device) -> Draws:
        """Gather the parameters of places."""
        params = [row.request.params for row, _ in places]

        def column(values: list[Any], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            places=places,
            weights=column([row.weights(position) for row, position in places]).T.contiguous(),
            sampling=SamplingRows(
                temperature=column([p.temperature for p in params]),
                top_k=column([p.top_k for p in params], torch.int64),
                top_p=column([p.top_p for p in params]),
                min_p=column([p.min_p for p in params]),
                plausibility=column([p.plausibility for p in params]),
            ),
            device=device,
        )

    def next(self) -> Draws:
        """The same rows one position further: what depends on the row alone is kept."""
        if any(row.request.params.access is not None for row, _ in self.places):
            return Draws.at([(row, position + 1) for row, position in self.places], self.device)
        return replace(self, places=[(row, position + 1) for row, position in self.places])

    def uniforms(self) -> Tensor:
        """(n,) float64."""
        values = [row.uniform(position) for row, position in self.places]
        return to_device(
            values, torch.float64, self.device
        )  # without waiting: the models may still be at work

    def forbidden(self) -> list[tuple[int, tuple[int, ...]]]:
        """(place, ids) of the places where ids are forbidden."""
        return [(i, ids) for i, (row, position) in enumerate(self.places) if (ids := row.forbidden(position))]
