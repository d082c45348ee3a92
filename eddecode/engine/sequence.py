"""What the engine decodes: requests, the state of each while it is decoded, and the sampling inputs of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eddecode.errors import EngineError
from eddecode.sampling.contrast import widened
from eddecode.sampling.dispatch import checked, contrast_and_sample
from eddecode.sampling.params import SamplingParams
from eddecode.sampling.penalties import PenalizedText, penalty_term
from eddecode.sampling.rng import uniforms
from eddecode.utils.device import copy_to_device
from eddecode_kernels.types import EVERY_FILTER, Filters, RawSample, SampledTokens, SamplingRows

Prompts = tuple[tuple[int, ...], ...]  # token ids of a prompt, per model


@dataclass(frozen=True)
class Request:
    """One completion to make.

    Attributes:
        prompt_index: which of the caller's prompts; errors name it.
        sample: which of the prompt's samples.
        prompts: token ids of the prompt, per model.
        params: how it is sampled.
        weights: the weight of each model's logits in the contrast.
        eos_ids: ids that end the completion.
        rng_key: (2,) uint64, key of its stream of random numbers.
        stop_checker: tells whether the tokens so far end with a stop string.
    """

    prompt_index: int
    sample: int
    prompts: Prompts
    params: SamplingParams
    weights: tuple[float, ...]
    eos_ids: frozenset[int]
    rng_key: np.ndarray[Any, np.dtype[np.uint64]]
    stop_checker: Callable[[Sequence[int]], bool] | None = None


@dataclass(eq=False)
class SequenceState:
    """A request while it is decoded.

    Attributes:
        tokens: sampled ids.
        logprobs: for each of them, one log-probability per model and then the contrast's, nats.
        finish_reason: "eos", "stop" or "length" once it is finished.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    finish_reason: str | None = None
    _uniforms: Any = None

    def input_ids(self) -> Prompts:
        """Per model, prompt and sampled tokens: what it has to read before the next token can be sampled."""
        return tuple((*ids, *self.tokens) for ids in self.request.prompts)

    def uniform(self, position: int) -> float:
        """The uniform random number of the token at a position of the completion."""
        if self._uniforms is None:
            self._uniforms = uniforms(self.request.rng_key, 0, self.request.params.max_new_tokens)
        return float(self._uniforms[position])

    def weights(self, position: int) -> tuple[float, ...]:
        """The weight of each model's logits at a position; the base's alone once access to the others has ended."""
        access = self.request.params.access
        if access is None or access.tokens is None or position < access.tokens:
            return self.request.weights
        return (1.0, *(0.0 for _ in self.request.weights[1:]))

    def noise_seed(self, position: int, model: int) -> int:
        """The seed of the noise on one model's log-probabilities at a position."""
        low, high = (int(word) for word in self.request.rng_key)
        return (low | high << 32 | position << 64 | model << 96) + 1

    def forbidden(self, position: int) -> tuple[int, ...]:
        """Ids that the token at a position must not be."""
        params = self.request.params
        ids = params.suppress_tokens
        if position < params.min_new_tokens:
            ids = (*ids, *self.request.eos_ids, *params.stop_token_ids)
        elif params.suppress_eos:
            ids = (*ids, *self.request.eos_ids)
        return ids

    def append(self, token: int, logprobs: list[float]) -> None:
        """Append a sampled token, and set `finish_reason` if it ends the completion."""
        self.tokens.append(token)
        self.logprobs.append(logprobs)
        request, params = self.request, self.request.params
        if token in request.eos_ids and not params.ignore_eos:
            self.finish_reason = "eos"
        elif token in params.stop_token_ids or (
            request.stop_checker is not None
            and len(self.tokens) >= params.min_new_tokens
            and request.stop_checker(self.tokens)
        ):
            self.finish_reason = "stop"
        elif len(self.tokens) >= params.max_new_tokens:
            self.finish_reason = "length"


@dataclass(frozen=True)
class SamplingBatch:
    """The sampling inputs of n tokens, each of them one position of one sequence.

    Attributes:
        positions: (sequence, position in its completion) of each token.
        weights: (N, n) float32, the weight of each of N models.
        sampling: temperature and filters of each token.
        device: where the logits are.
        filters: which some token uses.
        penalized: which tokens have a penalty on what was read or written before them.
        drafted: per token, what a draft has between its sequence's tokens and this position; empty: no drafts.
    """

    positions: list[tuple[SequenceState, int]]
    weights: Tensor
    sampling: SamplingRows
    device: torch.device
    filters: Filters = EVERY_FILTER
    penalized: frozenset[int] = frozenset()
    drafted: Sequence[Sequence[int]] = ()

    @classmethod
    def from_positions(
        cls, positions: list[tuple[SequenceState, int]], device: torch.device
    ) -> SamplingBatch:
        """Collect the parameters of these positions."""
        params = [sequence.request.params for sequence, _ in positions]

        def column(values: list[Any], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            positions=positions,
            weights=column([sequence.weights(position) for sequence, position in positions]).T.contiguous(),
            sampling=SamplingRows(
                temperature=column([p.temperature for p in params]),
                top_k=column([p.top_k for p in params], torch.int64),
                top_p=column([p.top_p for p in params]),
                min_p=column([p.min_p for p in params]),
                plausibility=column([p.plausibility for p in params]),
            ),
            device=device,
            filters=Filters(
                top_k=any(p.top_k > 0 for p in params),
                top_p=any(p.top_p < 1 for p in params),
                plausibility=any(p.plausibility > 0 for p in params),
            ),
            penalized=frozenset(i for i, p in enumerate(params) if p.penalizes),
        )

    @classmethod
    def next_tokens(cls, sequences: Sequence[SequenceState], device: torch.device) -> SamplingBatch:
        """The next token of each sequence."""
        return cls.from_positions([(sequence, len(sequence.tokens)) for sequence in sequences], device)

    def advanced(self) -> SamplingBatch:
        """The same sequences one position later; parameters that do not depend on the position are kept."""
        positions = [(sequence, position + 1) for sequence, position in self.positions]
        if any(sequence.request.params.access is not None for sequence, _ in positions):
            return SamplingBatch.from_positions(positions, self.device)
        return replace(self, positions=positions)

    def uniforms(self) -> Tensor:
        """(n,) float64."""
        values = [sequence.uniform(position) for sequence, position in self.positions]
        uniforms = torch.tensor(values, dtype=torch.float64)
        # Without waiting for the models' passes:
        return uniforms if self.device.type == "cpu" else copy_to_device(uniforms, self.device)

    def forbidden(self) -> list[tuple[int, tuple[int, ...]]]:
        """(index, ids) of the tokens that must not be one of these ids."""
        ids = [sequence.forbidden(position) for sequence, position in self.positions]
        return [(i, some) for i, some in enumerate(ids) if some]

    def penalty_term(
        self, logits: Sequence[Tensor], weights: Tensor, rows: Sequence[int], width: int
    ) -> Tensor:
        """What penalties add to the contrasts of some tokens, of which logits and weights are given: (rows, width)."""
        texts = []
        for row in rows:
            drafted = self.drafted[row] if self.drafted else ()
            texts.append(penalized_text(self.positions[row][0], drafted))
        return penalty_term(logits, weights, texts, width)

    def accessible(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """The logits as the contrast may see them: changed where a request limits the access to a model."""
        limited = list(logits)
        for i, (sequence, position) in enumerate(self.positions):
            access = sequence.request.params.access
            if access is None or not access.limits_logits:
                continue
            for model in range(1, len(limited)):
                if limited[model] is logits[model]:
                    limited[model] = logits[model].clone()
                limited[model][i] = access.apply(logits[model][i], sequence.noise_seed(position, model))
        return limited


def penalized_text(sequence: SequenceState, drafted: Sequence[int] = ()) -> PenalizedText:
    """What the next token of a sequence, or the one after drafted ones, follows: for its penalties."""
    request = sequence.request
    prompts = [ids for ids, weight in zip(request.prompts, request.weights, strict=True) if weight != 0]
    return PenalizedText(request.params, prompts, [*sequence.tokens, *drafted])


def active_models(sequence: SequenceState) -> tuple[bool, ...]:
    """Which models have a weight in its request."""
    return tuple(weight != 0 for weight in sequence.request.weights)


Partial = Mapping[tuple[bool, ...], Tensor]  # which models have a weight → the ids that may be sampled there


def sample(
    batch: SamplingBatch,
    logits: Sequence[Tensor],
    vocabulary: Tensor,
    names: tuple[str, ...],
    partial: Partial | None = None,
) -> SampledTokens:
    """Sample the tokens of a batch from the contrast of the models' logits.

    Args:
        batch: the sampling inputs of n tokens.
        logits: per model, (n, V_i) float32.
        vocabulary: (V,) bool, ids that may be sampled.
        names: of the models, for errors.
        partial: other vocabularies, for requests in which not all models have a weight.

    Raises:
        EngineError: a token cannot be sampled; it names the request and the model.
    """
    limited = batch.accessible(logits)
    try:
        if partial or batch.penalized:
            sampled = _sample_in_groups(batch, limited, vocabulary, partial or {})
        else:
            sampled = contrast_and_sample(
                limited, batch.weights, batch.sampling, batch.uniforms(), vocabulary, batch.forbidden(),
                filters=batch.filters,
            )  # fmt: skip
    except EngineError as error:
        raise _named(error, batch.positions, names) from error
    for model, (seen, full) in enumerate(zip(limited, logits, strict=True)):
        if seen is not full:  # report the model's own log-probability, not the limited one
            own = widened(full, int(sampled.tokens.max()) + 1).log_softmax(dim=-1)
            sampled.logprobs[model] = own.gather(-1, sampled.tokens[:, None].to(own.device))[:, 0]
    return sampled


def checked_sample(
    places: Sequence[tuple[SequenceState, int]], raw: RawSample, width: int, names: tuple[str, ...]
) -> SampledTokens:
    """What a device sampled for these positions of sequences.

    Raises:
        EngineError: a token cannot be sampled; it names the request and the model.
    """
    try:
        return checked(raw, width)
    except EngineError as error:
        raise _named(error, places, names) from error


def _named(
    error: EngineError, places: Sequence[tuple[SequenceState, int]], names: tuple[str, ...]
) -> EngineError:
    """The error of one row with its request."""
    if error.row is None:
        return error
    sequence, position = places[error.row]
    request = sequence.request
    return error.named(request.prompt_index, request.sample, position, names)


def _sample_in_groups(
    batch: SamplingBatch, logits: Sequence[Tensor], vocabulary: Tensor, partial: Partial
) -> SampledTokens:
    """As `contrast_and_sample`, by groups: those with a penalty apart, and each token from the vocabulary of the models
    that have a weight in its request."""
    groups: dict[tuple[tuple[bool, ...], bool], list[int]] = {}
    penalized = batch.penalized
    for row, (sequence, _) in enumerate(batch.positions):  # of a request, also after its access has ended
        active = active_models(sequence)
        groups.setdefault((active if active in partial else (), row in penalized), []).append(row)
    uniforms, forbidden = batch.uniforms(), dict(batch.forbidden())
    tokens = torch.empty(len(batch.positions), dtype=torch.int64)
    logprobs = torch.empty(len(logits) + 1, len(batch.positions), dtype=torch.float32)
    for (active, penalizes), rows in groups.items():
        ids = partial.get(active, vocabulary)
        at = torch.tensor(rows, device=batch.device)
        terms, weights = [widened(z[at], len(ids)) for z in logits], batch.weights[:, at].contiguous()
        if penalizes:
            terms.append(batch.penalty_term(terms, weights, rows, len(ids)))
            weights = torch.cat([weights, torch.ones_like(weights[:1])])
        try:
            sampled = contrast_and_sample(
                terms,
                weights,
                SamplingRows(**{name: value[at] for name, value in vars(batch.sampling).items()}),
                uniforms[at],
                ids,
                [(i, forbidden[row]) for i, row in enumerate(rows) if row in forbidden],
            )
        except EngineError as error:
            if error.row is not None:
                error.row = rows[error.row]
            raise
        tokens[rows], logprobs[:-1, rows] = sampled.tokens, sampled.logprobs[: len(logits)]
        logprobs[-1, rows] = sampled.logprobs[-1]
    return SampledTokens(tokens, logprobs)
